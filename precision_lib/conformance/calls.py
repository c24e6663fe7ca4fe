"""Calls somebody else's function and checks what comes back.

A core may change its input in place, raise, leave the process, skip the test, warn, return another
shape or type, on another device, or lose the gradient. Each is a failure of that core, with the
name of what it did, and never an error of the suite.
"""

import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precision_lib.conformance.contract import CONTRACTS
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.runtime import set_default_device

#: Parts of the result of a function that returns several.
PARTS = dict.fromkeys(("gae", "gae_with_bootstrap"), ("advantages", "returns"))
#: A part that may be None: a core that whitens its advantages at once has no plain ones to show.
MAY_BE_NONE = ("advantages",)


def is_gradient(part: str) -> bool:
    """Whether a part of a result is ``gradient`` or the gradient of a further input."""
    return part.startswith("gradient")


def upstream(shape: torch.Size) -> Tensor:
    """Weights of a result in its gradient: exact, of both signs, never all 1, float32.

    A backward that forgets to multiply by what comes from above is right for weights of 1 alone.
    """
    pattern = torch.tensor([-0.5, 1.0, -1.0, 0.5, -2.0])
    count = shape.numel()
    return pattern.repeat(count // len(pattern) + 1)[:count].view(shape)


@dataclass(frozen=True)
class Way:
    """How a function is called: what may vary and must not change the result.

    Attributes:
        layout: makes a tensor of the same values, in memory of its own.
        source_requires_grad: whether the differentiable input asks for a gradient.
        context: in which the function, and not its backward, runs.
        weights: result to what its gradient is multiplied by, of its shape and format.
    """

    layout: Callable[[Tensor], Tensor] = torch.clone
    source_requires_grad: bool = True
    context: Callable[[], AbstractContextManager[Any]] = torch.enable_grad
    weights: Callable[[Tensor], Tensor] = lambda result: upstream(result.shape).to(result)


PLAIN = Way()


def call(
    name: str, function: Callable[..., Any], inputs: Inputs, way: Way = PLAIN
) -> dict[str, Tensor]:
    """Call the function on copies of the inputs.

    Returns:
        Part to tensor on the CPU; a function with one result has the part ``result``, and
        ``gradient`` where it is differentiable and kept the graph:
        d sum(result * way.weights) / d input. One that is differentiable in a second input ``x``
        has a ``gradient_of_x``, too.

    Raises:
        ConformanceFailure: when it raises, changes its input, or returns what the interface does
            not know.
    """
    copies = inputs.each(way.layout)
    sources = CONTRACTS[name].gradients() if way.source_requires_grad else {}
    leaves = {part: copies[source].requires_grad_(True) for part, source in sources.items()}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # the target's, not ours
        parts = _parts(name, returned(name, function, copies, inputs, way.context), inputs)
        if leaves and parts["result"].requires_grad:
            parts |= attributed(
                f"backward through {name} raised",
                lambda: _gradients(parts["result"], leaves, way.weights),
                inputs,
            )
    check_unchanged(name, copies, inputs)
    if sources and "gradient" not in parts and CONTRACTS[name].is_loss:
        raise ConformanceFailure(f"{name} returned a loss without a gradient", inputs)
    return {part: x.detach().cpu() for part, x in parts.items()}


def returned(
    name: str,
    function: Callable[..., Any],
    given: Inputs,
    inputs: Inputs,
    context: Callable[[], AbstractContextManager[Any]] = torch.enable_grad,
) -> Any:
    """What the function returns for exactly ``given``; ``inputs`` stand in the failure.

    Raises:
        ConformanceFailure: it raised, or left gradients or the device in another state.
    """
    with context():
        gradients = torch.is_grad_enabled()
        try:
            value = attributed(f"{name} raised", lambda: function(**given.keywords()), inputs)
        finally:
            left = _left_behind(gradients)
    if left:
        raise ConformanceFailure(f"{name} {left}", inputs)
    return value


def _left_behind(gradients: bool) -> str:
    """What a call changed of how the next input is made, put back; the other switches can wait."""
    if torch.is_grad_enabled() != gradients:
        return f"left gradients switched {'off' if gradients else 'on'}"
    device = torch.get_default_device()
    if device.type == "cpu":
        return ""
    set_default_device(torch.device("cpu"))
    return f"changed default_device from cpu to {device}"


def attributed(what: str, action: Callable[[], Any], inputs: Inputs) -> Any:
    """The action's value; whatever it raises, leaving and skipping included, is a finding."""
    try:
        return action()
    except (KeyboardInterrupt, ConformanceFailure):
        raise
    except BaseException as error:
        place = _raised_at(error)
        raise ConformanceFailure(
            f"{what} {type(error).__name__}: {error}{place}", inputs
        ) from error


def _raised_at(error: BaseException) -> str:
    """`` (at file.py:12)``, the line that raised; the file's name alone, not where it lies.

    Nothing where it was this file: the call itself did not fit.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or frames[-1].filename == __file__:
        return ""
    return f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})"


def check_unchanged(name: str, given: Inputs, inputs: Inputs) -> None:
    """Compare what a function was given, on any device, with what its inputs were, on the CPU.

    Raises:
        ConformanceFailure: it changed one of them in place.
    """
    for key, value in given.tensors.items():
        if not _same_values(value.detach().cpu(), inputs[key]):
            raise ConformanceFailure(f"{name} changed its input {key!r} in place", inputs)


def _same_values(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):  # without NaN, nearly always
        return True
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _gradients(
    result: Tensor, leaves: Mapping[str, Tensor], weights: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    above = weights(result.detach())
    gradients = torch.autograd.grad(result, tuple(leaves.values()), above, allow_unused=True)
    return {
        part: torch.zeros_like(leaf) if gradient is None else gradient
        for (part, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def _parts(name: str, returned: Any, inputs: Inputs) -> dict[str, Tensor]:
    names = PARTS.get(name, ("result",))
    values = returned if name in PARTS else (returned,)
    if not isinstance(values, tuple | list) or len(values) != len(names):
        raise ConformanceFailure(
            f"{name} returned {type(returned).__name__}, expected ({', '.join(names)})", inputs
        )
    contract = CONTRACTS[name]
    shape = inputs[contract.like].shape if contract.like else torch.Size()
    if contract.drops_the_last:
        shape = shape[:-1]
    return {
        part: _checked(name, part, value, shape, inputs)
        for part, value in zip(names, values, strict=True)
        if not (value is None and part in MAY_BE_NONE)
    }


def _checked(name: str, part: str, value: Any, shape: torch.Size, inputs: Inputs) -> Tensor:
    """The value as a dense floating-point tensor of this shape."""
    if isinstance(value, tuple | list):
        raise ConformanceFailure(
            f"{name} returned a {type(value).__name__}, expected a tensor", inputs
        )
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConformanceFailure(
            f"{name} returned {type(value).__name__}, expected a tensor ({error})", inputs
        ) from None
    if not tensor.is_floating_point():
        raise ConformanceFailure(
            f"{name} returned {tensor.dtype}, expected floating-point numbers", inputs
        )
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise ConformanceFailure(
            f"{name} returned a {tensor.layout} tensor on {tensor.device}, expected a dense one "
            "with data",
            inputs,
        )
    if tensor.shape != shape:
        raise ConformanceFailure(
            f"{name}: {part} has shape {tuple(tensor.shape)}, expected {tuple(shape)}", inputs
        )
    return tensor
