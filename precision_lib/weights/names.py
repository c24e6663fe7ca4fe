"""Names of the same tensor in several frameworks; the rules are data, see ``names.toml``.

``clean`` removes what wrappers insert; this is the name that a finding shows. ``key`` is what two
sides share. A rule that is missing leaves a name unmatched, and the report lists it.
"""

import functools
import re
import tomllib
from pathlib import Path
from typing import Any


@functools.cache
def rules() -> dict[str, Any]:
    """The tables of ``names.toml``."""
    text = (Path(__file__).parent / "names.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@functools.lru_cache(maxsize=1 << 17)
def clean(name: str) -> str:
    """``name`` without the segments of wrappers."""
    wrappers = set(rules()["wrappers"]["segments"])
    segments = name.split(".")
    if "base_model" in segments:  # PEFT: base_model.model.<name>
        place = segments.index("base_model")
        if segments[place + 1 : place + 2] == ["model"]:
            del segments[place + 1]
    segments = [s for s in segments if s not in wrappers]
    if "modules_to_save" in segments:  # PEFT: <layer>.modules_to_save.<adapter>.<parameter>
        place = segments.index("modules_to_save")
        del segments[place : place + (2 if len(segments) > place + 2 else 1)]
    return ".".join(segments)


@functools.lru_cache(maxsize=1 << 17)
def key(name: str) -> str:
    """What the names of one tensor share across frameworks."""
    segments = clean(name).split(".")
    leading = rules()["wrappers"]["leading"]
    while len(segments) > 1 and segments[0] in leading:
        segments.pop(0)
    shared = ".".join(segments)
    for framework in rules()["rename"]:
        for pattern, replacement in framework["rules"]:
            shared = re.sub(pattern, replacement, shared)
    return shared


def may_be_alone(shared: str, side: str) -> bool:
    """Whether ``side`` ("trainer" or "engine") may have this tensor alone."""
    patterns = rules()["alone"]["either"] + rules()["alone"][side]
    return any(re.search(pattern, shared) for pattern in patterns)


def is_padded(shared: str) -> bool:
    """Whether an engine may pad the rows of this matrix."""
    return shared in rules()["tied"]["padded"]


def is_cut_by_columns(shared: str) -> bool:
    """Whether a rank of a tensor-parallel engine holds columns of this matrix."""
    return shared.split(".")[-2:-1] in [[name] for name in rules()["shards"]["columns"]]


def is_key_or_value(shared: str) -> bool:
    """Whether the tensor is a projection to keys or values."""
    return shared.split(".")[-2:-1] in [[name] for name in rules()["shards"]["key_value"]]


def adapter_of(shared: str) -> tuple[str, str] | None:
    """Key of the layer's weight and "A" or "B" for a LoRA matrix, None for any other tensor."""
    for pattern in rules()["adapters"]["patterns"]:
        match = re.match(pattern, shared)
        if match:
            matrix = {"in": "A", "out": "B"}.get(match["matrix"], match["matrix"])
            return f"{match['layer']}.weight", matrix
    return None


def fused_rule(shared: str) -> tuple[dict[str, Any], list[str]] | None:
    """The rule of a fused projection and the keys of its parts, None for any other name."""
    segments = shared.split(".")
    if len(segments) < 2:
        return None
    for rule in rules()["fused"]:
        if segments[-2] == rule["name"]:
            head, last = segments[:-2], segments[-1]
            return rule, [".".join([*head, part, last]) for part in rule["parts"]]
    return None


def stacked_parts(shared: str) -> tuple[str, list[str]] | None:
    """Key of the experts and the projections of each, None for any other name."""
    for rule in rules()["stacked"]:
        match = re.search(rule["pattern"], shared)
        if match:
            return shared[: match.start()] + ".experts", list(rule["parts"])
    return None


def scale_owner(name: str) -> str | None:
    """Stored name of the weight that a scale belongs to, None for any other tensor."""
    for ending in rules()["quantisation"]["scales"]:
        if name.endswith(ending):
            return name.removesuffix(ending)
    return None


def is_activation_scale(name: str) -> bool:
    """Whether the tensor is a scale of activations, which no trainer has."""
    endings = tuple(rules()["quantisation"]["activations"])
    return name.rsplit(".", 1)[-1].endswith(endings)


def is_unread(name: str) -> bool:
    """Whether the tensor is packed in a way that this comparison does not read."""
    return name.rsplit(".", 1)[-1] in rules()["quantisation"]["unread"]
