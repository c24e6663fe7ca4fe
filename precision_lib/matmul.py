"""16-bit matrix products on the CPU with the meaning that they have on a tensor core.

The hazard. On a GPU a bf16 product means: inputs in bf16, products and sums in FP32, one rounding
of the result. On a CPU the same line means whatever the machine has: a loop that takes ten
times as long as FP32 and more where AVX512-bf16 is missing, an instruction with its own rounding
and flushing of subnormals where it is there. A study of precision needs one meaning, and a test
suite needs it fast.

:class:`FP32AccumulatedMatmul` gives every 16-bit product on the CPU that meaning, below autograd,
so that the backward pass is covered by the same rule: upcast the inputs (exact), multiply and
accumulate in FP32, round once. A product of two bf16 values (16 bits) or fp16 values (22 bits)
is exact in FP32; what remains is the FP32 summation error, k * 2**-24 relative to sum |a||b|
for an inner dimension k, and the final rounding. A bias (``addmm``, ``linear``, ``baddbmm``) is
added before the rounding, as the epilogue of a tensor-core kernel does.

What it costs, against FP32 and the native kernels, is in ``docs/benchmarks.md``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_LOW = (torch.bfloat16, torch.float16)

#: The products that a transformers model issues with eager attention and eager experts, as overload
#: packets. Convolutions and grouped products are not among them and stay native.
_PRODUCTS = {
    _aten.mm,
    _aten.addmm,
    _aten.bmm,
    _aten.baddbmm,
    _aten.addbmm,
    _aten.mv,
    _aten.addmv,
    _aten.dot,
    _aten.matmul,
    _aten.linear,
}
_IN_PLACE = {
    _aten.addmm_: _aten.addmm,
    _aten.baddbmm_: _aten.baddbmm,
    _aten.addbmm_: _aten.addbmm,
    _aten.addmv_: _aten.addmv,
}


def _is_low_product(args: Sequence[Any]) -> bool:
    """True for CPU operands of one 16-bit format; a mixture is left to torch, which refuses it."""
    operands = [a for a in args if isinstance(a, torch.Tensor)]
    return operands[0].dtype in _LOW and all(
        a.device.type == "cpu" and a.dtype == operands[0].dtype for a in operands
    )


def _widen(value: Any) -> Any:
    return value.to(torch.float32) if isinstance(value, torch.Tensor) else value


class FP32AccumulatedMatmul(TorchDispatchMode):
    """Context in which 16-bit matrix products on the CPU accumulate in FP32 and round once.

    Backward passes must run inside it too. FP32 and FP64 products, other operations and other
    devices are untouched. All operands of a product must have one dtype, as torch demands.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        packet = func.overloadpacket
        if packet in _PRODUCTS and _is_low_product(args):
            out = kwargs.pop("out", None)
            result = _rounded_once(packet, args, kwargs)
            return result if out is None else out.copy_(result)
        if packet in _IN_PLACE and _is_low_product(args):
            return args[0].copy_(_rounded_once(_IN_PLACE[packet], args, kwargs))
        return func(*args, **kwargs)


def _rounded_once(
    product: Callable[..., torch.Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.Tensor:
    """``product`` in FP32 on upcast operands, rounded to the operands' format."""
    wide = product(*(_widen(a) for a in args), **{k: _widen(v) for k, v in kwargs.items()})
    return wide.to(args[0].dtype)
