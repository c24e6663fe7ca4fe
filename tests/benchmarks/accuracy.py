"""Each contender's largest error as a share of the bound that FP32 arithmetic is held to.

The hazard. The fastest way to a log-prob is a wrong one. So every time in the tables stands beside
an error: at most 1 is what conformance demands, and only contenders that meet it are of equal
accuracy. Errors are against the float64 oracle on the same rounded inputs, on a slice.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib import bounds, oracle
from precision_lib.formats import FORMATS, format_of
from tests.benchmarks.cases import Case, Inputs

FP32 = FORMATS["fp32"]
#: (exact result, limit of its error), both float64.
Truth = tuple[Tensor, Tensor]


def _array(x: Any) -> Any:
    return x.detach().double().cpu().numpy() if x.is_floating_point() else x.cpu().numpy()


def _arrays(inputs: Inputs) -> Inputs:
    return {k: _array(x) if isinstance(x, Tensor) else x for k, x in inputs.items()}


def _wide(inputs: Inputs) -> Inputs:
    def wide(x: Tensor) -> Tensor:
        return x.detach().cpu().double() if x.is_floating_point() else x.detach().cpu()

    return {k: wide(x) if isinstance(x, Tensor) else x for k, x in inputs.items()}


def _tensor(x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x, dtype=np.float64))


def _logprobs(case: Case) -> list[Truth]:
    want = _tensor(oracle.token_logprobs(**_arrays(case.inputs)))
    return [(want, bounds.log_softmax_bound(_wide(case.inputs)["logits"], want, FP32))]


def _entropy(case: Case) -> list[Truth]:
    want = _tensor(oracle.entropy(**_arrays(case.inputs)))
    return [(want, bounds.entropy_bound(_wide(case.inputs)["logits"], FP32))]


def _gae(case: Case) -> list[Truth]:
    advantages, returns = oracle.gae(**_arrays(case.inputs))
    limits = bounds.gae_bound(**_wide(case.inputs), fmt=FP32)
    return [(_tensor(advantages), limits[0]), (_tensor(returns), limits[1])]


def _kl(case: Case) -> list[Truth]:
    x, wide = _arrays(case.inputs), _wide(case.inputs)
    want = oracle.kl_penalty(x["policy_logprobs"], x["ref_logprobs"], x["estimator"])
    limit = bounds.kl_bound(
        wide["policy_logprobs"], wide["ref_logprobs"], wide["estimator"], fmt=FP32
    )
    return [(_tensor(want), limit)]


def _same_names(name: str) -> Callable[[Case], list[Truth]]:
    def truth(case: Case) -> list[Truth]:
        want = _tensor(getattr(oracle, name)(**_arrays(case.inputs)))
        limit = getattr(bounds, f"{name}_bound")(**_wide(case.inputs), fmt=FP32)
        return [(want, torch.as_tensor(limit, dtype=torch.float64))]

    return truth


_RESULTS: dict[str, Callable[[Case], list[Truth]]] = {
    "token_logprobs": _logprobs,
    "entropy": _entropy,
    "gae": _gae,
    "kl_penalty": _kl,
    "whiten": _same_names("whiten"),
    "policy_loss": _same_names("policy_loss"),
    "value_loss": _same_names("value_loss"),
}


def _gradient(case: Case) -> Truth:
    exact, wide = _arrays(case.inputs), _wide(case.inputs)
    if case.function == "token_logprobs":
        assert case.upstream is not None
        upstream = case.upstream.cpu().double()
        want = _tensor(oracle.token_logprobs_gradient(**exact, upstream=upstream.numpy()))
        limit = bounds.log_softmax_gradient_bound(**wide, upstream=upstream, fmt=FP32)
    else:
        want = _tensor(oracle.policy_loss_gradient(**exact))
        limit = bounds.policy_loss_gradient_bound(**wide, fmt=FP32)
    stored = case.inputs[case.leaf].dtype
    if stored != torch.float32:  # the gradient of a 16-bit input is rounded to 16 bits
        limit = limit + bounds.rounding_bound(want.abs() + limit, format_of(stored))
    return want, limit


@lru_cache(maxsize=1)
def truths(case: Case) -> list[Truth]:
    """The exact results of a case, and last its gradient where it has one, with their limits."""
    return _RESULTS[case.function](case) + ([_gradient(case)] if case.leaf else [])


def share(got: Tensor, want: Tensor, limit: Tensor) -> float:
    """Largest |got - want| / limit; inf for a NaN, and for an error where none is allowed."""
    error = (got - want).abs()
    error = torch.where(got == want, torch.zeros_like(error), error)  # also inf against inf
    ratio = torch.where(error == 0, error, error / limit).nan_to_num(nan=math.inf, posinf=math.inf)
    if ratio.numel() == 0:
        raise AssertionError("no element was compared")
    return float(ratio.max())


def error_over_limit(case: Case, result: Any, gradient: Tensor | None) -> float:
    """The largest of all results' shares, and of the gradient's, over real tokens.

    A result that is None was not offered (a peer that returns whitened advantages, say).
    """
    got = list(result) if isinstance(result, tuple) else [result]
    if gradient is not None:
        got.append(gradient)
    mask = case.inputs.get("mask")
    shares = []
    for x, (want, limit) in zip(got, truths(case), strict=True):
        if x is None:
            continue
        real = ... if mask is None or want.dim() == 0 else mask.cpu()
        values = x.detach().cpu().double()
        shares.append(share(values[real], want[real], limit.expand_as(want)[real]))
    return max(shares)
