"""What a function has to return: the exact value and how far FP32 may be from it.

The hazard. An expected value from the code under test, or from a library routine that it uses,
agrees with its errors. Values come from ``oracle``, limits from ``bounds``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precision_lib import bounds, oracle
from precision_lib.conformance.calls import PARTS, upstream
from precision_lib.conformance.contract import CONTRACTS
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.strategies.cases import Case
from precision_lib.formats import FORMATS, format_of
from precision_lib.targets.objectives import base


@dataclass(frozen=True)
class Truth:
    """One part of a result.

    Attributes:
        part: ``result``, ``advantages``, ``returns``, ``gradient`` or ``gradient_of_`` an input.
        want: the exact value, float64.
        limit: largest error that FP32 arithmetic can make, float64, same shape.
        bound: name of the function in ``bounds`` that the limit comes from.
    """

    part: str
    want: Tensor
    limit: Tensor
    bound: str

    @property
    def of_gradient(self) -> bool:
        """Whether the part has the format of an input."""
        return self.part.startswith("gradient")


def of_oracle(function: str, exact: Inputs, **further: NDArray[np.float64]) -> Any:
    """What the oracle of that name says of these inputs, and further ones of its own."""
    arrays = {k: x.numpy() for k, x in exact.tensors.items()}
    return getattr(oracle, function)(**arrays, **exact.options, **further)


def _limit(bound: str, exact: Inputs, **further: Tensor) -> Any:
    return getattr(bounds, bound)(**exact.keywords(), **further)


def truths(name: str, inputs: Inputs) -> dict[str, Truth]:
    """Part to truth, of the function called ``name`` on exactly these inputs."""
    exact = inputs.each(lambda x: x.double() if x.is_floating_point() else x)
    parts = _OF_THEIR_OWN.get(name, _scalar if not CONTRACTS[name].like else _shaped)
    return {truth.part: truth for truth in parts(name, exact, inputs)}


def truths_of(name: str, case: Case) -> dict[str, Truth]:
    """:func:`truths` of a case; of an embedded one from the truth of the small case."""
    if case.embedded is None:
        return truths(name, case.inputs)
    spread = case.embedded.spread
    return {
        part: replace(truth, want=spread(truth.want), limit=spread(truth.limit))
        for part, truth in truths(name, case.embedded.inputs).items()
    }


def _truth(part: str, want: Any, limit: Tensor, bound: str, stored: torch.dtype) -> Truth:
    """The limit of the bound, one rounding to the format it is stored in, and lost subnormals."""
    exact = torch.from_numpy(np.asarray(want, dtype=np.float64))
    fp32, narrow = FORMATS["fp32"], format_of(stored)
    rounding = torch.zeros_like(exact)
    if narrow.significand_bits < fp32.significand_bits:
        reached = exact.abs() + torch.nan_to_num(limit, posinf=0.0)
        rounding = bounds.rounding_bound(reached.clamp(max=narrow.largest), narrow)
    return Truth(part, exact, limit + rounding + 2 * fp32.smallest_subnormal, f"bounds.{bound}")


def _result(want: Any, limit: Tensor, bound: str, part: str = "result") -> Truth:
    return _truth(part, want, limit, bound, torch.float32)


def _gradients(
    name: str, wants: Any, limits: Any, bound: str, given: Inputs, factor: float = 1.0
) -> list[Truth]:
    """Those of all inputs that the gradient flows to, multiplied by ``factor``."""
    sources = CONTRACTS[name].gradients()
    pairs = zip(wants, limits, strict=True) if len(sources) > 1 else [(wants, limits)]
    return [
        _truth(part, factor * want, abs(factor) * limit, bound, given[source].dtype)
        for (part, source), (want, limit) in zip(sources.items(), pairs, strict=True)
    ]


def _scalar(name: str, exact: Inputs, given: Inputs) -> list[Truth]:
    """A scalar and its gradients; a ``denominator`` scales all of them.

    The oracles of the losses divide by the number of real tokens (of sequences for GSPO); another
    denominator D multiplies loss, gradient and their bounds by that number over D.
    """
    function, factor = base(name), 1.0
    if "denominator" in exact and function != "aggregate":
        factor = _count(function, exact) / exact.number("denominator")
        exact = exact.without("denominator")
    bound = f"{function}_bound"
    want = factor * np.asarray(of_oracle(function, exact))
    result = _result(want, factor * _limit(bound, exact), bound)
    if abs(float(result.want)) + float(result.limit) > FORMATS["fp32"].largest:
        return [result]  # nobody can use the gradient of a scalar that exceeds FP32
    several = "s" if len(CONTRACTS[name].sources) > 1 else ""
    bound, up = f"{function}_gradient_bound{several}", float(upstream(torch.Size()))
    wants = of_oracle(f"{function}_gradient{several}", exact)
    return [result, *_gradients(name, wants, _limit(bound, exact), bound, given, factor * up)]


def _count(function: str, inputs: Inputs) -> int:
    """What the loss divides by without a denominator, at least 1."""
    mask = inputs["mask"]
    return max(int(mask.any(-1).sum() if function == "gspo_loss" else mask.sum()), 1)


def _shaped(name: str, exact: Inputs, given: Inputs) -> list[Truth]:
    """A result that is no scalar, and its gradients under weights other than 1."""
    bound = f"{name}_bound"
    result = _result(of_oracle(name, exact), _limit(bound, exact), bound)
    sources = CONTRACTS[name].sources
    if not sources:
        return [result]
    several, weights = "s" if len(sources) > 1 else "", upstream(result.want.shape).double()
    bound = f"{name}_gradient_bound{several}"
    wants = of_oracle(f"{name}_gradient{several}", exact, upstream=weights.numpy())
    limits = _limit(bound, exact, upstream=weights)
    return [result, *_gradients(name, wants, limits, bound, given)]


def _token_logprobs(name: str, exact: Inputs, given: Inputs) -> list[Truth]:
    logits, tokens = exact["logits"], exact["tokens"]
    want, weights = of_oracle(name, exact), upstream(tokens.shape).double()
    slope = of_oracle(f"{name}_gradient", exact, upstream=weights.numpy())
    limit = bounds.log_softmax_bound(logits, torch.from_numpy(want))
    of_slope = bounds.log_softmax_gradient_bound(logits, tokens, weights)
    return [
        _result(want, limit, "log_softmax_bound"),
        *_gradients(name, slope, of_slope, "log_softmax_gradient_bound", given),
    ]


def _tempered(name: str, exact: Inputs, given: Inputs) -> list[Truth]:
    """log softmax(logits / temperature): the quotient is taken in float64."""
    logits, tokens, temperature = exact["logits"], exact["tokens"], exact.number("temperature")
    z, chosen = (logits / temperature).numpy(), tokens.numpy()
    weights = upstream(tokens.shape).double()
    slope = oracle.token_logprobs_gradient(z, chosen, weights.numpy()) / temperature
    limit = bounds.tempered_logprobs_bound(logits, tokens, temperature)
    of_slope = bounds.tempered_logprobs_gradient_bound(logits, tokens, temperature, weights)
    return [
        _result(oracle.token_logprobs(z, chosen), limit, "tempered_logprobs_bound"),
        *_gradients(name, slope, of_slope, "tempered_logprobs_gradient_bound", given),
    ]


def _kl_penalty(name: str, exact: Inputs, given: Inputs) -> list[Truth]:
    policy, ref, estimator = *exact.tensors.values(), exact.word("estimator")
    weights = upstream(policy.shape).double()
    slope = of_oracle(f"{name}_gradient", exact, upstream=weights.numpy())
    limit = bounds.kl_gradient_bound(policy, ref, estimator, weights)
    return [
        _result(of_oracle(name, exact), bounds.kl_bound(policy, ref, estimator), "kl_bound"),
        *_gradients(name, slope, limit, "kl_gradient_bound", given),
    ]


def _gae(name: str, exact: Inputs, given: Inputs) -> list[Truth]:
    wants, limits = of_oracle("gae", exact), _limit("gae_bound", exact)
    parts = zip(PARTS[name], wants, limits, strict=True)
    return [_result(want, limit, "gae_bound", part) for part, want, limit in parts]


#: Functions whose oracle or bound has other arguments, or several results.
_OF_THEIR_OWN: dict[str, Callable[[str, Inputs, Inputs], list[Truth]]] = {
    "token_logprobs": _token_logprobs,
    "token_logprobs_with_temperature": _tempered,
    "kl_penalty": _kl_penalty,
    "gae": _gae,
    "gae_with_bootstrap": _gae,
}
