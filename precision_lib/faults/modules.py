"""Faults of one kind of module in a model that is FP32 otherwise, for ``attribute``.

Each is planted in one model, through hooks on it, and names the kind that has to come out on top.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from precision_lib.attribution.places import LM_HEAD, NORMS, RESIDUAL, ROPE, SOFTMAX, layers_of

_SOFTMAX = {torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax}


def _rounded(value: Tensor) -> Tensor:
    return value.bfloat16().float()


def norm_in_bf16(model: Any) -> None:
    """The norms compute their mean square, or mean and variance, in bf16."""
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.register_forward_hook(_norm)


def _norm(module: nn.Module, arguments: tuple[Tensor, ...], _output: Tensor) -> Tensor:
    x = arguments[0].bfloat16()
    if isinstance(module, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.eps)
        return (normed * module.weight.bfloat16() + module.bias.bfloat16()).float()
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)  # type: ignore[operator]
    return (normed * module.weight.bfloat16()).float()  # type: ignore[operator]


def rope_table_in_bf16(model: Any) -> None:
    """Sine and cosine of the positions are stored in bf16.

    Raises:
        ValueError: the model has no such table.
    """
    table = getattr(model.base_model, "rotary_emb", None)
    if table is None:
        raise ValueError(f"{type(model).__name__} has no RoPE table; plant another fault")
    table.register_forward_hook(lambda _m, _a, out: tuple(_rounded(x) for x in out))


def lm_head_in_bf16(model: Any) -> None:
    """Hidden states, vocabulary matrix and logits are bf16, the product accumulates in FP32."""

    def hook(module: Any, arguments: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        return _rounded(_rounded(arguments[0]) @ _rounded(module.weight).T)

    model.get_output_embeddings().register_forward_hook(hook)


def residual_rounded(model: Any) -> None:
    """What a layer hands to the next one is stored in bf16."""
    for layer in layers_of(model):
        layer.register_forward_hook(lambda _m, _a, out: _rounded(out))


def softmax_op_by_op(model: Any) -> None:
    """The softmax of attention is written as exp, sum and quotient, each rounded to bf16."""
    for layer in layers_of(model):
        attention: Any = getattr(layer, "self_attn", None) or layer.get_submodule("attn")
        attention.forward = _op_by_op(attention.forward)


def _op_by_op(forward: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with _OpByOp():
            return forward(*args, **kwargs)

    return inside


class _OpByOp(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in _SOFTMAX:
            return func(*args, **(kwargs or {}))
        exponential = _rounded(torch.exp(_rounded(args[0] - args[0].amax(-1, keepdim=True))))
        return _rounded(exponential / _rounded(exponential.sum(-1, keepdim=True)))


#: Name of a fault to (what plants it in a model, the kind that has to come out on top).
MODULE_FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "norm_in_bf16": (norm_in_bf16, NORMS),
    "rope_table_in_bf16": (rope_table_in_bf16, ROPE),
    "lm_head_in_bf16": (lm_head_in_bf16, LM_HEAD),
    "residual_rounded": (residual_rounded, RESIDUAL),
    "softmax_op_by_op": (softmax_op_by_op, SOFTMAX),
}
