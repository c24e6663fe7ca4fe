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
    DIFFERENTIABLE_IN,
    GRADIENT_IS_REQUIRED,
    call,
    is_gradient,
    returned,
    sources_of,
)
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.sameness import Function, Inputs, equal_bits, unless_refused

#: Inputs that a loss, or a weight, takes as constants, function by function.
CONSTANTS = {
    "policy_loss": ("old_logprobs", "advantages"),
    "policy_loss_with_denominator": ("old_logprobs", "advantages"),
    "sequence_ratio": ("old_logprobs",),
    "importance_weights": ("train_logprobs", "rollout_logprobs"),
    **{
        f"{loss}{option}": ("old_logprobs", "advantages")
        for loss in ("gspo_loss", "cispo_loss", "dapo_loss")
        for option in ("", "_with_denominator")
    },
}
#: A gradient that is missing here is said in the table and is no failure.
GRADIENT_IS_OPTIONAL = ("entropy", "masked_mean")
#: Ids that no vocabulary has: the label of a masked token, a wrapped one, one behind the end.
FOREIGN_IDS = (-100, -1)


def nan_is_visible(name: str, function: Function, inputs: Inputs) -> int:
    """A NaN at a real token of each floating-point input makes a part of the result NaN.

    A refusal is an answer, too. A single token says nothing: whitened it is 0.
    """
    compared = 0
    if int(inputs.get("mask", next(iter(inputs.values()))).numel()) < 2:
        return 1
    if "mask" in inputs and int(inputs["mask"].sum()) < 2:
        return 1
    keys = [k for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
    for key in keys:
        changed = dict(inputs) | {key: _with_nan(inputs[key], inputs.get("mask"))}
        if key != "advantages" and "advantages" in inputs:  # 0 times NaN may be 0
            changed["advantages"] = torch.ones_like(inputs["advantages"])
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
        changed = dict(inputs) | {"tokens": tokens}
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
    got, source = call(name, function, inputs), DIFFERENTIABLE_IN[name]
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
    given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    for key in (*sources_of(name).values(), *CONSTANTS[name]):
        given[key].requires_grad_(True)
    with torch.enable_grad():
        result = returned(name, function, given, inputs)
        for key in CONSTANTS[name]:
            _none_for(name, key, result, given[key], inputs)
    return len(CONSTANTS[name]) + _none_for_a_mask(name, function, inputs)


def _none_for(name: str, key: str, result: Any, constant: Tensor, inputs: Inputs) -> None:
    if not (isinstance(result, Tensor) and result.requires_grad):
        if name in GRADIENT_IS_REQUIRED:
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
    given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    given["mask"] = given["mask"].float().requires_grad_(True)
    for key in sources_of(name).values():
        given[key].requires_grad_(True)
    try:
        with torch.enable_grad():
            result = function(**given)
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
    if name in DIFFERENTIABLE_IN:
        edges["gradient_exists"] = ("the result has a gradient", gradient_exists)
    if name in CONSTANTS:
        edges["constants_get_no_gradient"] = (
            f"no gradient flows to {', '.join(CONSTANTS[name])} or the mask",
            constants_get_no_gradient,
        )
    if "tokens" in arguments:
        edges["foreign_ids_are_not_token_0"] = (
            "an id outside the vocabulary is refused or masked, and never another token",
            foreign_ids_are_not_token_0,
        )
    return edges
