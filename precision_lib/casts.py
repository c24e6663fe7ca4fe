"""Contexts in which torch casts otherwise than it is asked to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class WidenedSoftmax(TorchFunctionMode):
    """Context in which a softmax with a ``dtype`` casts its input first, with the same result."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax):
            dtype = kwargs.pop("dtype", None)
            return func(args[0] if dtype is None else args[0].to(dtype), *args[1:], **kwargs)
        return func(*args, **kwargs)


class Float64Casts(TorchFunctionMode):
    """Context in which casts to FP32 inside a float64 model become casts to float64.

    The hazard: a transformers model in ``.double()`` is no float64 reference, because RMSNorm,
    softmax and RoPE cast to FP32 inside (error 1.2e-6 in a log-prob). ``x.to(torch.float32)``,
    ``x.float()`` and ``dtype=torch.float32`` arguments are redirected; a test certifies that no
    FP32 tensor is produced on the way. FP32 parameters and the RoPE table are data of the
    checkpoint and stay the values that they are.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = {k: _double(v) for k, v in (kwargs or {}).items()}
        if func is torch.Tensor.float:
            return args[0].to(torch.float64)
        return func(*(_double(a) for a in args), **kwargs)


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
