"""Checkpoints on disk: safetensors alone, read by offset, so that memory does not grow with size.

The header of a safetensors file is read here and not by the safetensors package: its numpy reader
knows no bf16, and its torch reader loads torch.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.jsonio import JsonObject, unique_names
from precision_lib.weights.codes import FROM_SAFETENSORS, Codes, code_type
from precision_lib.weights.tensors import DataTensor, Tensor

REFUSED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HEADER_LIMIT = 100_000_000


class SourceError(ValueError):
    """A checkpoint or manifest cannot be read; the message names it and says what to do."""


@dataclass(frozen=True)
class Source:
    """All tensors of one side, with what the side says about itself.

    Attributes:
        label: where it comes from, for messages.
        tensors: by stored name.
        config: the model's config.json, {} where there is none.
        adapter: the adapter_config.json of LoRA, {} where there is none.
        step: training step, None where it is not known.
        rank: of a tensor-parallel engine, None for a side that is whole.
    """

    label: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    rank: int | None = None


def open_checkpoint(path: Path) -> Source:
    """A directory of safetensors files, or one file, with config.json beside it.

    Raises:
        SourceError: no safetensors file, a broken one, a listed shard that is not there, a tensor
            that two files hold, or only pickle files, which are refused.
    """
    return read_files(path, _files(path))


def read_files(path: Path, files: Sequence[Path], rank: int | None = None) -> Source:
    """The source that safetensors ``files`` of the checkpoint ``path`` hold.

    Raises:
        SourceError: as :func:`open_checkpoint`.
    """
    folder = path if path.is_dir() else path.parent
    tensors: dict[str, Tensor] = {}
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise SourceError(f"{path}: {file.name} holds {tensor.name} a second time")
            tensors[tensor.name] = tensor
    absent = [name for name in _weight_map(folder) if name not in tensors]
    if path.is_dir() and rank is None and absent:
        raise SourceError(
            f"{path}: the index lists {absent[0]}, which no shard holds; copy all shards again"
        )
    adapter = _json(folder / "adapter_config.json")
    config = _json(folder / "config.json")
    base = Path(str(adapter.get("base_model_name_or_path", "")))
    only_adapter = all("lora_" in name for name in tensors)
    if adapter and only_adapter and base.is_dir() and base.resolve() != folder.resolve():
        under = open_checkpoint(base)
        tensors = {**under.tensors, **tensors}
        config = config or dict(under.config)
    return Source(str(path), tensors, config, adapter, rank=rank)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix in REFUSED:
            raise SourceError(f"{path} may hold pickle, which runs code; {_CONVERT}")
        return [path]
    if not path.is_dir():
        raise SourceError(
            f"{path} does not exist; give a directory, a safetensors file, a manifest"
        )
    index = path / "model.safetensors.index.json"
    adapter = [p for p in [path / "adapter_model.safetensors"] if p.is_file()]
    if index.is_file():
        names = sorted(set(_weight_map(path).values()))
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise SourceError(f"{index} lists {missing[0]}, which is not there; copy all shards")
        return [path / name for name in names] + adapter
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors", *adapter]
    files = sorted(path.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in REFUSED)
    if pickles:
        raise SourceError(f"{path} holds {pickles[0]}, maybe pickle, which runs code; {_CONVERT}")
    raise SourceError(f"{path} holds no *.safetensors file; save the model with save_pretrained")


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file, of the index of a sharded checkpoint; {} where there is none."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return {}
    table = _json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise SourceError(f"{index} has no weight_map; write it again with save_pretrained")
    return table


_CONVERT = "save it as safetensors (model.save_pretrained, or safetensors.torch.save_file)"


def read_header(file: Path) -> list[DataTensor]:
    """The tensors of a safetensors file, none of them read.

    Raises:
        SourceError: the file is truncated, no safetensors, or holds an unknown format.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise SourceError(f"{file} is no safetensors file, or is cut off; write it again")
            header = json.loads(opened.read(length), object_pairs_hook=unique_names)
        entries = [(name, e) for name, e in header.items() if name != "__metadata__"]
        return [_tensor(file, name, entry, 8 + length, size) for name, entry in entries]
    except OSError as error:
        raise SourceError(f"{file}: {error.strerror}; give a file that can be read") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{file} has a broken header ({error}); write it again") from None


def _tensor(file: Path, name: str, entry: Mapping[str, Any], base: int, size: int) -> DataTensor:
    if entry["dtype"] not in FROM_SAFETENSORS:
        known = ", ".join(FROM_SAFETENSORS)
        raise SourceError(f"{file}: {name} has dtype {entry['dtype']}; readable are {known}")
    fmt = FROM_SAFETENSORS[entry["dtype"]]
    shape = tuple(int(n) for n in entry["shape"])
    start, stop = entry["data_offsets"]
    width = code_type(fmt).itemsize
    if (
        start < 0
        or stop - start != width * int(np.prod(shape, dtype=np.int64))
        or base + stop > size
    ):
        raise SourceError(f"{file}: the bytes of {name} do not fit its shape; write it again")
    return DataTensor(name, fmt, shape, _reader(file, base + start, fmt))


def _reader(file: Path, offset: int, fmt: str) -> Callable[[int, int], Codes]:
    """Reads flat elements start to stop of the tensor at byte ``offset``."""
    dtype = code_type(fmt)

    def fetch(start: int, stop: int) -> Codes:
        codes = np.empty(stop - start, dtype)
        view = codes.view(np.uint8).data
        with file.open("rb", buffering=0) as opened:
            opened.seek(offset + start * dtype.itemsize, os.SEEK_SET)
            place = 0
            while place < len(view):
                count = opened.readinto(view[place:])
                if not count:
                    raise SourceError(f"{file} was cut off while it was read; write it again")
                place += count
        return codes

    return fetch


def _json(path: Path) -> JsonObject:
    """A JSON object, {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=unique_names)
    except ValueError as error:
        raise SourceError(f"{path} is not whole JSON ({error}); write it again") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path} is no JSON object; write it again")
    return value
