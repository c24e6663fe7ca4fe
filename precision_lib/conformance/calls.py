"""Calling somebody else's function, and looking at what comes back.

The hazards. A core may change its input in place, raise, warn, return another shape, a tuple, a
numpy array or nothing; it may lose the gradient. Each of these is a result about that core, said
with its name, and never an error of the suite.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from precision_lib.conformance.failure import ConformanceFailure

#: The input that a function is differentiable in, if it is at all.
DIFFERENTIABLE_IN = {
    "token_logprobs": "logits",
    "entropy": "logits",
    "kl_penalty": "policy_logprobs",
    "masked_mean": "x",
    "policy_loss": "logprobs",
    "value_loss": "values",
}
#: A loss without a gradient trains nothing, so here it has to have one.
GRADIENT_IS_REQUIRED = ("policy_loss", "value_loss")
#: Parts of the result of a function that returns several.
PARTS = {"gae": ("advantages", "returns")}


def call(name: str, function: Callable[..., Any], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Call the function on copies of the inputs.

    Returns:
        Part to tensor; a function with one result has the part ``result``, and ``gradient`` where
        it is differentiable and kept the graph: d sum(result * upstream) / d input.

    Raises:
        ConformanceFailure: when it raises, or returns what the interface does not know.
    """
    copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    source = DIFFERENTIABLE_IN.get(name)
    if source is not None:
        copies[source].requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the target's, not ours
        try:
            returned = function(**copies)
        except Exception as error:
            raise ConformanceFailure(
                f"{name} raised {type(error).__name__}: {error}", inputs
            ) from error
        parts = _parts(name, returned, inputs)
        if source is not None and parts["result"].requires_grad:
            parts["gradient"] = _gradient(name, parts["result"], copies[source], inputs)
    if "gradient" not in parts and name in GRADIENT_IS_REQUIRED:
        raise ConformanceFailure(f"{name} returned a loss without a gradient", inputs)
    return {part: x.detach() for part, x in parts.items()}


def upstream(shape: torch.Size) -> Tensor:
    """Weights of an elementwise result in its gradient: exact, of both signs, float32."""
    pattern = torch.tensor([1.0, -1.0, 0.5, -2.0, 1.0])
    count = shape.numel()
    return pattern.repeat(count // len(pattern) + 1)[:count].view(shape)


def _gradient(name: str, result: Tensor, source: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    try:
        weights = upstream(result.shape).to(result.dtype) if result.dim() else None
        (gradient,) = torch.autograd.grad(result, source, weights, allow_unused=True)
    except Exception as error:
        raise ConformanceFailure(
            f"backward through {name} raised {type(error).__name__}: {error}", inputs
        ) from error
    return torch.zeros_like(source) if gradient is None else gradient


def _parts(name: str, returned: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    names = PARTS.get(name, ("result",))
    values = returned if name in PARTS else (returned,)
    if not isinstance(values, tuple | list) or len(values) != len(names):
        raise ConformanceFailure(
            f"{name} returned {type(returned).__name__}, expected ({', '.join(names)})", inputs
        )
    parts = {}
    for part, value in zip(names, values, strict=True):
        try:
            parts[part] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConformanceFailure(
                f"{name} returned {type(value).__name__}, expected a tensor ({error})", inputs
            ) from None
        if not parts[part].is_floating_point():
            raise ConformanceFailure(
                f"{name} returned {parts[part].dtype}, expected floating-point numbers", inputs
            )
    return parts
