"""What each function has to return, by its oracle and its bound: see ``truth.py``."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib import bounds, oracle
from precision_lib.conformance.calls import upstream
from precision_lib.conformance.truth import Truth, truth_of
from precision_lib.formats import FORMATS
from precision_lib.targets.objectives import OPTIONS

Inputs = Mapping[str, Any]
Truths = Callable[[Inputs, Inputs], list[Truth]]


def _numpy(values: Inputs) -> dict[str, Any]:
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in values.items()}


def _result(want: Any, limit: Tensor, bound: str, part: str = "result") -> Truth:
    return truth_of(part, want, limit, f"bounds.{bound}", torch.float32)


def _gradient(want: Any, limit: Tensor, bound: str, source: Tensor, part: str = "") -> Truth:
    name = f"gradient_of_{part}" if part else "gradient"
    return truth_of(name, want, limit, f"bounds.{bound}", source.dtype)


def _array(name: str, exact: Inputs, given: Inputs) -> list[Truth]:
    """The truth of a result without a gradient."""
    want, limit = getattr(oracle, name)(**_numpy(exact)), getattr(bounds, f"{name}_bound")
    return [_result(want, limit(**exact), f"{name}_bound")]


def _fits(truth: Truth) -> bool:
    """Nobody can use the gradient of a scalar that exceeds FP32."""
    return abs(float(truth.want)) + float(truth.limit) <= FORMATS["fp32"].largest


def _scalar(name: str, source: str, exact: Inputs, given: Inputs) -> list[Truth]:
    """A scalar and its gradient in ``source``; a ``denominator`` scales both.

    The oracles of the losses divide by the number of real tokens (of sequences for GSPO); another
    denominator D multiplies loss, gradient and their bounds by that number over D.
    """
    plain = {k: v for k, v in exact.items() if k != "denominator" or name == "aggregate"}
    factor = 1.0 if len(plain) == len(exact) else _count(name, exact) / exact["denominator"]
    want = factor * np.asarray(getattr(oracle, name)(**_numpy(plain)))
    limit = factor * getattr(bounds, f"{name}_bound")(**plain)
    result = _result(want, limit, f"{name}_bound")
    if not _fits(result):
        return [result]
    up = float(upstream(torch.Size()))
    slope = factor * up * getattr(oracle, f"{name}_gradient")(**_numpy(plain))
    limit = factor * abs(up) * getattr(bounds, f"{name}_gradient_bound")(**plain)
    return [result, _gradient(slope, limit, f"{name}_gradient_bound", given[source])]


def _count(name: str, inputs: Inputs) -> int:
    """What the loss divides by without a denominator, at least 1."""
    mask = inputs["mask"]
    return max(int(mask.any(-1).sum() if name == "gspo_loss" else mask.sum()), 1)


def _with_upstream(name: str, source: str, exact: Inputs, given: Inputs) -> list[Truth]:
    """A result that is no scalar, and its gradient under weights other than 1."""
    result = _array(name, exact, given)[0]
    weights = upstream(result.want.shape).double()
    slope = getattr(oracle, f"{name}_gradient")(**_numpy(exact), upstream=weights.numpy())
    limit = getattr(bounds, f"{name}_gradient_bound")(**exact, upstream=weights)
    return [result, _gradient(slope, limit, f"{name}_gradient_bound", given[source])]


def _token_logprobs(exact: Inputs, given: Inputs) -> list[Truth]:
    logits, tokens = exact["logits"], exact["tokens"]
    want = oracle.token_logprobs(**_numpy(exact))
    weights = upstream(tokens.shape).double()
    slope = oracle.token_logprobs_gradient(**_numpy(exact), upstream=weights.numpy())
    limit = bounds.log_softmax_gradient_bound(logits, tokens, weights)
    return [
        _result(
            want, bounds.log_softmax_bound(logits, torch.from_numpy(want)), "log_softmax_bound"
        ),
        _gradient(slope, limit, "log_softmax_gradient_bound", given["logits"]),
    ]


def _kl_penalty(exact: Inputs, given: Inputs) -> list[Truth]:
    policy, ref, estimator = (exact[k] for k in ("policy_logprobs", "ref_logprobs", "estimator"))
    weights = upstream(policy.shape).double()
    pair = policy.numpy(), ref.numpy(), estimator
    slope = oracle.kl_penalty_gradient(*pair, weights.numpy())
    limit = bounds.kl_gradient_bound(policy, ref, estimator, weights)
    return [
        _result(oracle.kl_penalty(*pair), bounds.kl_bound(policy, ref, estimator), "kl_bound"),
        _gradient(slope, limit, "kl_gradient_bound", given["policy_logprobs"]),
    ]


def _linear(exact: Inputs, given: Inputs) -> list[Truth]:
    result = _array("linear_token_logprobs", exact, given)[0]
    weights = upstream(result.want.shape).double()
    wants = oracle.linear_token_logprobs_gradients(**_numpy(exact), upstream=weights.numpy())
    limits = bounds.linear_token_logprobs_gradient_bounds(**exact, upstream=weights)
    bound = "linear_token_logprobs_gradient_bounds"
    of_hidden, of_weight = zip(wants, limits, strict=True)
    return [
        result,
        _gradient(*of_hidden, bound, given["hidden"]),
        _gradient(*of_weight, bound, given["weight"], "weight"),
    ]


def _dpo(exact: Inputs, given: Inputs) -> list[Truth]:
    result = _array("dpo_loss", exact, given)[0]
    up = float(upstream(torch.Size()))
    wants = oracle.dpo_loss_gradients(**_numpy(exact))
    limits = bounds.dpo_loss_gradient_bounds(**exact)
    bound = "dpo_loss_gradient_bounds"
    chosen, rejected = ((up * w, abs(up) * x) for w, x in zip(wants, limits, strict=True))
    return [
        result,
        _gradient(*chosen, bound, given["policy_chosen"]),
        _gradient(*rejected, bound, given["policy_rejected"], "policy_rejected"),
    ]


def _tempered(exact: Inputs, given: Inputs) -> list[Truth]:
    """log softmax(logits / temperature): the quotient is taken in float64."""
    logits, tokens, temperature = exact["logits"], exact["tokens"], exact["temperature"]
    z, chosen = (logits / temperature).numpy(), tokens.numpy()
    weights = upstream(tokens.shape).double()
    slope = oracle.token_logprobs_gradient(z, chosen, weights.numpy()) / temperature
    return [
        _result(
            oracle.token_logprobs(z, chosen),
            bounds.tempered_logprobs_bound(logits, tokens, temperature),
            "tempered_logprobs_bound",
        ),
        _gradient(
            slope,
            bounds.tempered_logprobs_gradient_bound(logits, tokens, temperature, weights),
            "tempered_logprobs_gradient_bound",
            given["logits"],
        ),
    ]


def _gae(exact: Inputs, given: Inputs) -> list[Truth]:
    wants, limits = oracle.gae(**_numpy(exact)), bounds.gae_bound(**exact)
    parts = zip(("advantages", "returns"), wants, limits, strict=True)
    return [_result(want, limit, "gae_bound", part) for part, want, limit in parts]


#: Function with a scalar result to the input that it is differentiable in.
_SCALARS = {
    "masked_mean": "x",
    "aggregate": "values",
    "gspo_loss": "logprobs",
    "cispo_loss": "logprobs",
    "dapo_loss": "logprobs",
    "policy_loss": "logprobs",
    "value_loss": "values",
}

TRUTHS: dict[str, Truths] = {
    "token_logprobs": _token_logprobs,
    "entropy": partial(_with_upstream, "entropy", "logits"),
    "kl_penalty": _kl_penalty,
    "gae": _gae,
    **{name: partial(_scalar, name, source) for name, source in _SCALARS.items()},
    **{
        name: partial(_array, name)
        for name in ("whiten", "group_advantages", "importance_weights", "rloo_advantages")
    },
    "sequence_ratio": partial(_with_upstream, "sequence_ratio", "logprobs"),
    **{
        name: partial(_scalar, function, _SCALARS[function])
        for name, (function, argument, _) in OPTIONS.items()
        if argument == "denominator"
    },
    "linear_token_logprobs": _linear,
    "token_logprobs_with_temperature": _tempered,
    "gae_with_bootstrap": _gae,
    "dpo_loss": _dpo,
    "jsd": partial(_with_upstream, "jsd", "student_logits"),
}
