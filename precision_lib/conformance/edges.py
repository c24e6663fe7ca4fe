"""The edges of the contract, as checks: one sentence of docs/targets.md each.

The hazard. At an edge a core can be wrong without a wrong number in an ordinary batch: a NaN of a
broken forward disappears in a maximum, a missing token id becomes token 0, a gradient is cut off by
a ``detach`` too much, or reaches the advantages.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from precision_lib.conformance.calls import (
    call,
    is_gradient,
    returned,
)
from precision_lib.conformance.contract import CONTRACTS
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.sameness import Function, equal_bits, unless_refused

#: A gradient that is missing here is said in the table and is no failure.
GRADIENT_IS_OPTIONAL = ("entropy", "masked_mean")
#: Ids that no vocabulary has: the label of a masked token, a wrapped one, one behind the end.
FOREIGN_IDS = (-100, -1)


def nan_is_visible(name: str, function: Function, inputs: Inputs) -> int:
    """A NaN at a real token of each floating-point input makes a part of the result NaN.

    A refusal is an answer, too. A single token says nothing: whitened it is 0.
    """
    compared, mask = 0, inputs.mask
    first = next(iter(inputs.tensors.values()))
    if first.numel() < 2 if mask is None else int(mask.sum()) < 2:
        return 1
    for key, x in inputs.floating().items():
        changed = inputs | {key: _with_nan(x, mask)}
        if key != "advantages" and "advantages" in inputs:  # 0 times NaN may be 0
            changed |= {"advantages": torch.ones_like(inputs["advantages"])}
        got = unless_refused(name, function, changed)
        compared += 1
        if got is None:
            continue
        results = [x for part, x in got.items() if not is_gradient(part)]
        if not any(bool(x.isnan().any()) for x in results):
            shown = [x.flatten()[:8].tolist() for x in results]
            raise ConformanceFailure(
                f"{name}: a NaN at a real token of {key} disappears: the result is {shown}", changed
            )
    return compared


def _with_nan(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` with a NaN at its last real element, so that it comes behind others."""
    changed = x.clone()
    if mask is None or mask.shape != x.shape:
        changed.view(-1)[-1] = torch.nan
    else:
        changed[tuple(mask.nonzero()[-1])] = torch.nan
    return changed


def foreign_ids_are_not_token_0(name: str, function: Function, inputs: Inputs) -> int:
    """An id outside the vocabulary is refused, or its slot is 0 or not finite; no other changes."""
    plain, compared = call(name, function, inputs)["result"], 0
    vocabulary = inputs["logits"].shape[-1] if "logits" in inputs else inputs["weight"].shape[0]
    for token in (*FOREIGN_IDS, vocabulary):
        tokens = inputs["tokens"].clone()
        tokens.view(-1)[-1] = token
        changed = inputs | {"tokens": tokens}
        got = unless_refused(name, function, changed)
        compared += 1
        if got is None:
            continue
        at, others = got["result"].view(-1)[-1], got["result"].view(-1)[:-1]
        if bool(at.isfinite()) and float(at) != 0:
            raise ConformanceFailure(
                f"{name}: token id {token} of a vocabulary of {vocabulary} gets {float(at):.9g}, "
                "the log-prob of another token; refuse it, or give 0 or NaN",
                changed,
            )
        if not equal_bits(others, plain.view(-1)[:-1]):
            raise ConformanceFailure(
                f"{name}: token id {token} at the last slot changes other slots", changed
            )
        _no_gradient_of(name, token, got, changed)
    return compared


def _no_gradient_of(name: str, token: int, got: Mapping[str, Tensor], inputs: Inputs) -> None:
    """A slot that is masked to 0 has no gradient either."""
    if "gradient" not in got or float(got["result"].view(-1)[-1]) != 0 or "logits" not in inputs:
        return
    row = got["gradient"].reshape(-1, got["gradient"].shape[-1])[-1]
    if bool((row != 0).any()):
        raise ConformanceFailure(
            f"{name}: token id {token} gets a log-prob of 0 and a gradient", inputs
        )


def gradient_exists(name: str, function: Function, inputs: Inputs) -> int:
    """The result is connected with the differentiable input."""
    got, source = call(name, function, inputs), CONTRACTS[name].sources[0]
    if "gradient" not in got:
        raise ConformanceFailure(
            f"{name} returned a result without a gradient: nothing learns from it; let it flow to "
            f"{source}, or name the function in WITHOUT_GRADIENT of the target",
            inputs,
        )
    return got["gradient"].numel()


def constants_get_no_gradient(name: str, function: Function, inputs: Inputs) -> int:
    """Of a result, whose constants ask for a gradient too: they get none, or exactly 0.

    So does a mask of floating-point numbers, where the function takes one.
    """
    given = inputs.copied()
    constants = CONTRACTS[name].constants
    for key in (*CONTRACTS[name].sources, *constants):
        given[key].requires_grad_(True)
    with torch.enable_grad():
        result = returned(name, function, given, inputs)
        for key in constants:
            _none_for(name, key, result, given[key], inputs)
    return len(constants) + _none_for_a_mask(name, function, inputs)


def _none_for(name: str, key: str, result: Any, constant: Tensor, inputs: Inputs) -> None:
    if not (isinstance(result, Tensor) and result.requires_grad):
        if CONTRACTS[name].is_loss:
            raise ConformanceFailure(f"{name} returned a loss without a gradient", inputs)
        return
    total = result.sum()
    (gradient,) = torch.autograd.grad(total, constant, allow_unused=True, retain_graph=True)
    if gradient is not None and bool((gradient != 0).any()):
        shown = gradient.flatten()[:8].tolist()
        raise ConformanceFailure(
            f"{name}: {key} is a constant and gets a gradient: {shown}", inputs
        )


def _none_for_a_mask(name: str, function: Function, inputs: Inputs) -> int:
    given = inputs.copied() | {"mask": inputs["mask"].float().requires_grad_(True)}
    for key in CONTRACTS[name].sources:
        given[key].requires_grad_(True)
    try:
        with torch.enable_grad():
            result = function(**given.keywords())
    except Exception:  # a mask of numbers may be refused
        return 0
    _none_for(name, "mask", result, given["mask"], inputs)
    return 1


Edge = tuple[str, Callable[[str, Function, Inputs], int]]


def edges_of(name: str, arguments: tuple[str, ...]) -> dict[str, Edge]:
    """Name to (meaning, holds) of the edges that a function with these arguments has."""
    edges: dict[str, Edge] = {
        "nan_is_visible": ("a NaN at a real token is visible in the result", nan_is_visible)
    }
    contract = CONTRACTS[name]
    if contract.sources:
        edges["gradient_exists"] = ("the result has a gradient", gradient_exists)
    if contract.constants:
        edges["constants_get_no_gradient"] = (
            f"no gradient flows to {', '.join(contract.constants)} or the mask",
            constants_get_no_gradient,
        )
    if "tokens" in arguments:
        edges["foreign_ids_are_not_token_0"] = (
            "an id outside the vocabulary is refused or masked, and never another token",
            foreign_ids_are_not_token_0,
        )
    return edges
