"""What a function has to return: the exact value and how far FP32 may be from it.

The hazard. An expected value from the code under test, or from a library routine that it uses,
agrees with its errors. Values come from ``oracle``, limits from ``bounds``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib import bounds, oracle
from precision_lib.conformance.calls import upstream
from precision_lib.conformance.strategies.cases import Case
from precision_lib.formats import FORMATS, format_of


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


def truths(name: str, inputs: Mapping[str, Any]) -> dict[str, Truth]:
    """Part to truth, of the function called ``name`` on exactly these inputs."""
    exact = {k: _exact(v) for k, v in inputs.items()}
    from precision_lib.conformance.objective_truths import TRUTHS  # builds on this module

    return {t.part: t for t in (_TRUTHS | TRUTHS)[name](exact, inputs)}


def truths_of(name: str, case: Case) -> dict[str, Truth]:
    """:func:`truths` of a case; of an embedded one from the truth of the small case."""
    if case.embedded is None:
        return truths(name, case.inputs)
    spread = case.embedded.spread
    return {
        part: replace(truth, want=spread(truth.want), limit=spread(truth.limit))
        for part, truth in truths(name, case.embedded.inputs).items()
    }


def _exact(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _numpy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in values.items()}


def truth_of(part: str, want: Any, limit: Tensor, bound: str, stored: torch.dtype) -> Truth:
    """The limit of the bound, one rounding to the format it is stored in, and lost subnormals."""
    exact = torch.from_numpy(np.asarray(want, dtype=np.float64))
    fp32, narrow = FORMATS["fp32"], format_of(stored)
    rounding = torch.zeros_like(exact)
    if narrow.significand_bits < fp32.significand_bits:
        reached = exact.abs() + torch.nan_to_num(limit, posinf=0.0)
        rounding = bounds.rounding_bound(reached.clamp(max=narrow.largest), narrow)
    return Truth(part, exact, limit + rounding + 2 * fp32.smallest_subnormal, bound)


def _result(want: Any, limit: Tensor, bound: str, part: str = "result") -> Truth:
    return truth_of(part, want, limit, f"bounds.{bound}", torch.float32)


def _gradient(want: Any, limit: Tensor, bound: str, source: Tensor) -> Truth:
    return truth_of("gradient", want, limit, f"bounds.{bound}", source.dtype)


def _token_logprobs(exact: Mapping[str, Any], given: Mapping[str, Any]) -> list[Truth]:
    logits, tokens = exact["logits"], exact["tokens"]
    want = oracle.token_logprobs(**_numpy(exact))
    limit = bounds.log_softmax_bound(logits, torch.from_numpy(want))
    weights = upstream(tokens.shape).double()
    gradient = oracle.token_logprobs_gradient(**_numpy(exact), upstream=weights.numpy())
    of_gradient = bounds.log_softmax_gradient_bound(logits, tokens, weights)
    return [
        _result(want, limit, "log_softmax_bound"),
        _gradient(gradient, of_gradient, "log_softmax_gradient_bound", given["logits"]),
    ]


def _entropy(exact: Mapping[str, Any], given: Mapping[str, Any]) -> list[Truth]:
    logits = exact["logits"]
    weights = upstream(logits.shape[:-1]).double()
    want = oracle.entropy(**_numpy(exact))
    gradient = oracle.entropy_gradient(logits.numpy(), weights.numpy())
    of_gradient = bounds.entropy_gradient_bound(logits, weights)
    return [
        _result(want, bounds.entropy_bound(logits), "entropy_bound"),
        _gradient(gradient, of_gradient, "entropy_gradient_bound", given["logits"]),
    ]


def _kl_penalty(exact: Mapping[str, Any], given: Mapping[str, Any]) -> list[Truth]:
    policy, ref, estimator = (exact[k] for k in ("policy_logprobs", "ref_logprobs", "estimator"))
    weights = upstream(policy.shape).double()
    pair = policy.numpy(), ref.numpy(), estimator
    return [
        _result(
            oracle.kl_penalty(*pair),
            bounds.kl_bound(policy, ref, estimator),
            "kl_bound",
        ),
        _gradient(
            oracle.kl_penalty_gradient(*pair, weights.numpy()),
            bounds.kl_gradient_bound(policy, ref, estimator, weights),
            "kl_gradient_bound",
            given["policy_logprobs"],
        ),
    ]


def _scalar(
    name: str, source: str, exact: Mapping[str, Any], given: Mapping[str, Any]
) -> list[Truth]:
    """Truths of a scalar and of its gradient in ``source`` under the one upstream weight.

    Where the exact scalar exceeds FP32, nobody can use its gradient and it is not compared.
    """
    result = _array(name, exact, given)[0]
    if not abs(float(result.want)) + float(result.limit) <= FORMATS["fp32"].largest:
        return [result]
    weight, bound = float(upstream(torch.Size())), f"{name}_gradient_bound"
    gradient = weight * getattr(oracle, f"{name}_gradient")(**_numpy(exact))
    limit = abs(weight) * getattr(bounds, bound)(**exact)
    return [result, _gradient(gradient, limit, bound, given[source])]


def _array(name: str, exact: Mapping[str, Any], given: Mapping[str, Any]) -> list[Truth]:
    """Truth of the one result of a function; its gradient is not compared."""
    want, bound = getattr(oracle, name)(**_numpy(exact)), f"{name}_bound"
    return [_result(want, getattr(bounds, bound)(**exact), bound)]


def _gae(exact: Mapping[str, Any], given: Mapping[str, Any]) -> list[Truth]:
    wants = oracle.gae(**_numpy(exact))
    limits = bounds.gae_bound(**exact)
    return [
        _result(want, limit, "gae_bound", part)
        for part, want, limit in zip(("advantages", "returns"), wants, limits, strict=True)
    ]


_TRUTHS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], list[Truth]]] = {
    "token_logprobs": _token_logprobs,
    "entropy": _entropy,
    "kl_penalty": _kl_penalty,
    "masked_mean": partial(_scalar, "masked_mean", "x"),
    "whiten": partial(_array, "whiten"),
    "gae": _gae,
    "group_advantages": partial(_array, "group_advantages"),
    "policy_loss": partial(_scalar, "policy_loss", "logprobs"),
    "value_loss": partial(_scalar, "value_loss", "values"),
}
