"""Names of the same tensor in several frameworks; the rules are data, see ``names.toml``.

``clean`` removes what wrappers insert; this is the name that a finding shows. ``key`` is what two
sides share. A rule that is missing leaves a name unmatched, and the report lists it.
"""

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fused:
    """A projection that joins others along its rows.

    Attributes:
        name: last segment but one of its name. parts: those that it joins.
        split: ``heads``, ``groups`` or ``equal``, see ``names.toml``.
    """

    name: str
    parts: list[str]
    split: str

    def within(self, segments: list[str]) -> list[str]:
        """The keys of the parts, in the place of a tensor whose name has these segments."""
        return [".".join([*segments[:-2], part, segments[-1]]) for part in self.parts]


@dataclass(frozen=True)
class Rules:
    """The tables of ``names.toml``; each key is explained there."""

    wrappers: Mapping[str, list[str]]
    adapters: Mapping[str, list[str]]
    rename: list[tuple[str, str]]
    fused: list[Fused]
    shards: Mapping[str, list[str]]
    stacked: list[tuple[str, list[str]]]
    quantisation: Mapping[str, list[str]]
    alone: Mapping[str, list[str]]
    tied_head: str
    tied_embedding: list[str]
    padded: list[str]


@functools.cache
def rules() -> Rules:
    """What ``names.toml`` holds."""
    text = (Path(__file__).parent / "names.toml").read_text(encoding="utf-8")
    stored = tomllib.loads(text)
    tied = stored.pop("tied")
    stored["rename"] = [tuple(rule) for of in stored["rename"] for rule in of["rules"]]
    stored["fused"] = [Fused(**rule) for rule in stored["fused"]]
    stored["stacked"] = [(rule["pattern"], rule["parts"]) for rule in stored["stacked"]]
    return Rules(
        **stored,
        tied_head=tied["head"],
        tied_embedding=tied["embedding"],
        padded=tied["padded"],
    )


@functools.lru_cache(maxsize=1 << 17)
def clean(name: str) -> str:
    """``name`` without the segments of wrappers."""
    wrappers = set(rules().wrappers["segments"])
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
    leading = rules().wrappers["leading"]
    while len(segments) > 1 and segments[0] in leading:
        segments.pop(0)
    shared = ".".join(segments)
    for pattern, replacement in rules().rename:
        shared = re.sub(pattern, replacement, shared)
    return shared


def may_be_alone(shared: str, side: str) -> bool:
    """Whether ``side`` ("trainer" or "engine") may have this tensor alone."""
    patterns = rules().alone["either"] + rules().alone[side]
    return any(re.search(pattern, shared) for pattern in patterns)


def is_padded(shared: str) -> bool:
    """Whether an engine may pad the rows of this matrix."""
    return shared in rules().padded


def is_cut_by_columns(shared: str) -> bool:
    """Whether a rank of a tensor-parallel engine holds columns of this matrix."""
    return shared.split(".")[-2:-1] in [[name] for name in rules().shards["columns"]]


def is_key_or_value(shared: str) -> bool:
    """Whether the tensor is a projection to keys or values."""
    return shared.split(".")[-2:-1] in [[name] for name in rules().shards["key_value"]]


def adapter_of(shared: str) -> tuple[str, str] | None:
    """Key of the layer's weight and "A" or "B" for a LoRA matrix, None for any other tensor."""
    for pattern in rules().adapters["patterns"]:
        match = re.match(pattern, shared)
        if match:
            matrix = {"in": "A", "out": "B"}.get(match["matrix"], match["matrix"])
            return f"{match['layer']}.weight", matrix
    return None


def fused_rule(shared: str) -> tuple[Fused, list[str]] | None:
    """The rule of a fused projection and the keys of its parts, None for any other name."""
    segments = shared.split(".")
    owner = segments[-2] if len(segments) > 1 else None
    rule = next((rule for rule in rules().fused if rule.name == owner), None)
    return None if rule is None else (rule, rule.within(segments))


def parts_of(shared: str) -> list[str]:
    """The keys of what a tensor holds; its own, where it joins no others."""
    fused = fused_rule(shared)
    return [shared] if fused is None else fused[1]


def stacked_parts(shared: str) -> tuple[str, list[str]] | None:
    """Key of the experts and the projections of each, None for any other name."""
    for pattern, parts in rules().stacked:
        match = re.search(pattern, shared)
        if match:
            return shared[: match.start()] + ".experts", parts
    return None


def scale_owner(name: str) -> str | None:
    """Stored name of the weight that a scale belongs to, None for any other tensor."""
    for ending in rules().quantisation["scales"]:
        if name.endswith(ending):
            return name.removesuffix(ending)
    return None


def is_activation_scale(name: str) -> bool:
    """Whether the tensor is a scale of activations, which no trainer has."""
    endings = tuple(rules().quantisation["activations"])
    return name.rsplit(".", 1)[-1].endswith(endings)


def is_unread(name: str) -> bool:
    """Whether the tensor is packed in a way that this comparison does not read."""
    return name.rsplit(".", 1)[-1] in rules().quantisation["unread"]
