"""A manifest: hashes and a few statistics of every tensor of one side, as one JSON file.

A manifest is about 1 KB for each tensor, whatever the tensor's size. Hashes are the same on every
device and with every release of torch and numpy; norms have four digits and narrow down alone.
"""

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.jsonio import JsonObject, load_object, write_json
from precision_lib.weights import names
from precision_lib.weights.files import REFUSED, Source, SourceError, open_checkpoint
from precision_lib.weights.layout import pieces_alone
from precision_lib.weights.model_config import heads, vocabulary
from precision_lib.weights.recorded import ManifestTensor
from precision_lib.weights.shards import recorded
from precision_lib.weights.tensors import (
    PIECE,
    DataTensor,
    Range,
    Tensor,
    part_key,
)

SCHEMA = "precision-forensics/weights/1"
#: What a comparison needs of config.json and adapter_config.json.
CONFIG_KEYS = (
    "architectures",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "vocab_size",
    "tie_word_embeddings",
    "quantization_config",
    "text_config",
)
ADAPTER_KEYS = ("lora_alpha", "use_rslora", "alpha_pattern")


def open_source(path: Path) -> Source:
    """A checkpoint directory, a safetensors file or a manifest.

    Raises:
        SourceError: it is none of these, or broken; the message names it and says what to do.
    """
    if path.is_file() and path.suffix == ".json":
        return load_manifest(path)
    if path.is_file() and path.suffix not in (".safetensors", *REFUSED):
        raise SourceError(f"{path} is no safetensors file and no manifest (.json)")
    return open_checkpoint(path)


def describe(source: Source, tensor_parallel: int = 1) -> JsonObject:
    """The manifest of ``source``, whose tensors must have data; one tensor is read at a time.

    Args:
        tensor_parallel: ranks of the engine that it will be compared with; above 1 the manifest
            holds hashes of each rank's shards too.
    """
    parts = _parts(source)
    shards = _shards(source, tensor_parallel) if tensor_parallel > 1 else {}
    tensors = {}
    for name, tensor in source.tensors.items():
        if not isinstance(tensor, DataTensor):
            raise SourceError(f"{source.label} is a manifest already; give a checkpoint")
        tensors[name] = tensor.record()
        vocabulary_rows = _without_zero_rows(tensor) + _tokens(tensor, source.config)
        for part in parts.get(name, []) + vocabulary_rows:
            tensors[name].setdefault("parts", {})[part_key(part.ranges)] = part.record()
        for ranges, records in shards.get(name, {}).items():
            whole = ranges == tensor.ranges
            facts = tensors[name] if whole else tensors[name]["parts"][part_key(ranges)]
            facts.setdefault("parts", {}).update(records)
    return {
        "schema": SCHEMA,
        "label": source.label,
        "step": source.step,
        "rank": source.rank,
        "config": {k: source.config[k] for k in CONFIG_KEYS if k in source.config},
        "adapter": {k: source.adapter[k] for k in ADAPTER_KEYS if k in source.adapter},
        "tensors": tensors,
    }


def write_manifest(path: Path, source: Source, tensor_parallel: int = 1) -> None:
    """Write the manifest of ``source`` as JSON.

    Raises:
        OSError: ``path`` cannot be written.
    """
    write_json(path, describe(source, tensor_parallel))


def load_manifest(path: Path) -> Source:
    """The source that a manifest describes.

    Raises:
        SourceError: it is no manifest, or of another schema.
    """
    how = "write one with --write-manifest"
    try:
        manifest = load_object(path, "weights", how)
    except ValueError as error:
        raise SourceError(str(error)) from None
    if manifest.get("schema") != SCHEMA:
        raise SourceError(f"{path} is no record of weights ({SCHEMA}); {how}")
    try:
        return from_manifest(manifest, str(path))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SourceError(f"{path} is damaged ({error}); write it again") from None


def from_manifest(manifest: Mapping[str, Any], label: str) -> Source:
    """The source of a manifest in memory, called ``label`` in messages."""
    tensors = {name: ManifestTensor(name, facts) for name, facts in manifest["tensors"].items()}
    for name in ("step", "rank"):
        if not isinstance(manifest.get(name), int | None):
            raise ValueError(f"{name} is {manifest[name]!r}, no whole number")
    return Source(
        label,
        tensors,
        manifest["config"],
        manifest["adapter"],
        manifest["step"],
        manifest.get("rank"),
    )


def _parts(source: Source) -> dict[str, list[DataTensor]]:
    """Parts of fused and stacked tensors by stored name, with every split that may be asked for."""
    parts: dict[str, list[DataTensor]] = {}
    for pieces in pieces_alone(source).pieces.values():
        for piece in pieces:
            for tensor in (piece.tensor, piece.scale):
                if isinstance(tensor, DataTensor) and tensor.is_part:
                    parts.setdefault(tensor.name, []).append(tensor)
    for name, tensor in source.tensors.items():
        fused = names.fused_rule(names.key(name))
        if fused is not None and fused[0].split == "heads" and name not in parts:
            parts[name] = _possible_heads(tensor)
    return parts


def _shards(source: Source, ranks: int) -> dict[str, dict[tuple[Range, ...], dict[str, object]]]:
    """Stored name -> ranges of a piece in it -> what the manifest holds of the piece's shards."""
    known = heads(source.config)
    made: dict[str, dict[tuple[Range, ...], dict[str, object]]] = {}
    for shared, pieces in pieces_alone(source).pieces.items():
        tensor = pieces[0].tensor
        if isinstance(tensor, DataTensor):
            records = recorded(shared, tensor, ranks, known[1] if known else None)
            made.setdefault(tensor.name, {})[tensor.ranges] = records
    return made


def _possible_heads(tensor: Tensor) -> list[DataTensor]:
    """Splits into q, k, v of every ratio of heads, where no configuration says which is right."""
    rows, width = tensor.shape[0], prod(tensor.shape[1:])
    parts: dict[tuple[Range, ...], DataTensor] = {}
    for ratio in (1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16):
        if rows % (ratio + 2):
            continue
        size = rows // (ratio + 2)
        edges = (0, ratio * size, (ratio + 1) * size, rows)
        for first, last in pairwise(edges):
            part = tensor.part(((first * width, last * width),), (last - first, *tensor.shape[1:]))
            assert isinstance(part, DataTensor)
            parts[part.ranges] = part
    return list(parts.values())


def _tokens(tensor: DataTensor, config: Mapping[str, Any]) -> list[DataTensor]:
    """The rows of the vocabulary, where the configuration says that more are stored."""
    count = vocabulary(config)
    if not names.is_padded(names.key(tensor.name)) or len(tensor.shape) != 2 or not count:
        return []
    rows, width = tensor.shape
    return [tensor.part(((0, count * width),), (count, width))] if count < rows else []


def _without_zero_rows(tensor: DataTensor) -> list[DataTensor]:
    """The rows before trailing zeros, where the vocabulary may be padded and ends in zeros."""
    if not names.is_padded(names.key(tensor.name)) or len(tensor.shape) != 2:
        return []
    rows, width = tensor.shape
    per_read = max(1, PIECE // max(width, 1))
    last = rows
    while last:
        first = max(0, last - per_read)
        part = tensor.part(((first * width, last * width),), (last - first, width))
        used = np.flatnonzero(part.codes().any(axis=1))
        if len(used):
            last = first + int(used[-1]) + 1
            break
        last = first
    if last in (0, rows):
        return []
    return [tensor.part(((0, last * width),), (last, width))]
