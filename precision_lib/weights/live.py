"""A manifest from a model that is running: parameters and buffers of any torch module.

The one module of this folder that imports torch. A tensor is copied to the CPU a piece at a time;
a DTensor is gathered whole, one tensor at a time, on every rank.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precision_lib.jsonio import JsonObject, write_json
from precision_lib.weights.codes import Codes, code_type
from precision_lib.weights.files import Source
from precision_lib.weights.manifests import describe
from precision_lib.weights.tensors import DataTensor

FORMATS = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8_e4m3",
    torch.float8_e5m2: "fp8_e5m2",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
#: Integer types that torch can view the codes as, by bytes.
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def manifest(
    model: torch.nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    path: Path | str | None = None,
    *,
    config: Any = None,
    step: int | None = None,
    label: str = "a live model",
    rank: int | None = None,
    tensor_parallel: int = 1,
) -> JsonObject:
    """The manifest of a model, a state dictionary, or an iterable of names and tensors.

    Args:
        model: of a module, parameters and buffers are taken, those that are not saved too; one
            that has two names has the first. An iterable is read once, so that a generator may
            gather one shard after the other.
        path: where to write it as JSON; None does not write. Write on one rank alone.
        config: a transformers configuration or a dictionary; default: ``model.config``.
        step: the training step, which later comparisons name.
        rank: of an engine's tensor parallelism, whose model is a part of the whole.
        tensor_parallel: of a whole model: the ranks of the engine that it is compared with, whose
            shards are hashed too.

    Raises:
        TypeError: a tensor of a type that has no name in a manifest.
    """
    described = _config(getattr(model, "config", None) if config is None else config)
    gathered = _Gathered()
    if isinstance(model, torch.nn.Module | Mapping):
        tensors = {name: _opened(name, tensor, gathered) for name, tensor in _named(model)}
        result = describe(Source(label, tensors, described, {}, step, rank), tensor_parallel)
    else:
        result = describe(Source(label, {}, described, {}, step, rank))
        for name, tensor in model:
            one = {name: _opened(name, tensor, gathered)}
            result["tensors"] |= describe(Source(label, one, described), tensor_parallel)["tensors"]
    if path is not None:
        write_json(Path(path), result)
    return result


def _named(model: torch.nn.Module | Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    if isinstance(model, torch.nn.Module):
        yield from model.named_parameters()
        yield from model.named_buffers()
    else:
        yield from model.items()


def _opened(name: str, tensor: Tensor, gathered: "_Gathered") -> DataTensor:
    if tensor.dtype not in FORMATS:
        known = ", ".join(FORMATS.values())
        raise TypeError(f"{name} has dtype {tensor.dtype}; a manifest names {known}")
    fmt = FORMATS[tensor.dtype]
    detached = tensor.detach()

    def fetch(start: int, stop: int) -> Codes:
        """Flat elements start to stop, copied to the CPU."""
        flat = gathered.flat(detached)[start:stop].cpu()
        codes: Codes = flat.view(_SAME_SIZE[flat.element_size()]).numpy().view(code_type(fmt))
        return codes

    return DataTensor(name, fmt, tuple(tensor.shape), fetch)


class _Gathered:
    """The tensor that is being read, contiguous, and joined where it is a DTensor."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._flat: Tensor | None = None

    def flat(self, tensor: Tensor) -> Tensor:
        """All elements of ``tensor``, flat; kept until another tensor is asked for."""
        if self._of is not tensor or self._flat is None:
            self._flat = None
            whole = getattr(tensor, "full_tensor", lambda: tensor)()
            self._of, self._flat = tensor, whole.contiguous().view(-1)
        return self._flat


def _config(config: Any) -> JsonObject:
    if config is None:
        return {}
    return dict(config) if isinstance(config, Mapping) else dict(config.to_dict())
