"""A core in numpy: loops over sequences and tokens in float64, results rounded once to FP32.

Losses, log-probs and KL carry a gradient, in closed form; nothing else does. B sequences, T tokens,
V vocabulary, G groups, K samples; masks are True for a real token.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
#: exp of more does not fit into float64.
LARGEST_EXPONENT = 709.0


def _array(x: Tensor) -> Array:
    return x.detach().cpu().double().numpy()


def _fp32(x: Array | float) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64).float()


def _real(mask: Tensor) -> NDArray[np.bool_]:
    return mask.detach().bool().numpy()


class _Known(torch.autograd.Function):
    """A value, of each slot or a scalar, whose slope is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Array | float, slope: Array) -> Tensor:
        ctx.save_for_backward(torch.from_numpy(slope))
        ctx.dtype = x.dtype
        return _fp32(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        if upstream.dim() and upstream.dim() < slope.dim():
            upstream = upstream.unsqueeze(-1)
        return (slope * upstream).to(ctx.dtype), None, None


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    z, chosen = _array(logits), tokens.cpu().numpy()
    if (chosen < 0).any():
        raise ValueError("a negative token")
    result, slope = np.zeros(chosen.shape), np.zeros(z.shape)
    for b, t in np.ndindex(*chosen.shape):
        shifted = z[b, t] - z[b, t].max()
        weights = np.exp(shifted)
        result[b, t] = shifted[chosen[b, t]] - np.log(weights.sum())
        slope[b, t] = -weights / weights.sum()
        others = weights.sum() - weights[chosen[b, t]]
        slope[b, t, chosen[b, t]] = max(others / weights.sum(), -np.expm1(result[b, t]))
    return _Known.apply(logits, result, slope)  # type: ignore[no-any-return]


def entropy(logits: Tensor) -> Tensor:
    z = _array(logits)
    result = np.zeros(z.shape[:2])
    for b, t in np.ndindex(*result.shape):
        shifted = z[b, t] - z[b, t].max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        possible = logprobs != -np.inf
        result[b, t] = -(np.exp(logprobs[possible]) * logprobs[possible]).sum()
    return _fp32(result)


def _k3(d: float) -> float:
    if -d > LARGEST_EXPONENT:
        return math.inf
    if abs(d) < 1e-4:  # the next term is d^5 / 120
        return d * d * (1 / 2 - d / 6 + d * d / 24)
    return math.expm1(-d) + d


def kl_penalty(policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    d = _array(policy_logprobs) - _array(ref_logprobs)
    if estimator not in ("k1", "k2", "k3"):
        raise ValueError(f"unknown estimator {estimator!r}")
    if estimator == "k1":
        value, slope = d, np.ones(d.shape)
    elif estimator == "k2":
        value, slope = d * d / 2, d
    else:
        value = np.array([_k3(x) for x in d.ravel()]).reshape(d.shape)
        with np.errstate(over="ignore"):
            slope = -np.expm1(-d)
    return _Known.apply(policy_logprobs, value, slope)  # type: ignore[no-any-return]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    values = _array(x)[_real(mask)]
    return _fp32(values.sum() / values.size if values.size else 0.0)


def _standardised(values: Array) -> Array:
    """(x - mean) / sample std; zeros for fewer than two values and for a constant."""
    if values.size < 2 or (values == values[0]).all():
        return np.zeros_like(values)
    standardised: Array = (values - values.mean()) / values.std(ddof=1)
    return standardised


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    result, real = np.zeros(x.shape), _real(mask)
    result[real] = _standardised(_array(x)[real])
    return _fp32(result)


def group_advantages(rewards: Tensor) -> Tensor:
    return _fp32(np.stack([_standardised(group) for group in _array(rewards)]))


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    r, v, real = _array(rewards), _array(values), _real(mask)
    advantages, returns = np.zeros(r.shape), np.zeros(r.shape)
    for b in range(len(r)):
        advantage = next_value = 0.0
        for t in np.flatnonzero(real[b])[::-1]:
            advantage = r[b, t] + gamma * next_value - v[b, t] + gamma * lam * advantage
            next_value = v[b, t]
            advantages[b, t], returns[b, t] = advantage, advantage + next_value
    return _fp32(advantages), _fp32(returns)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    new, old, a, real = *map(_array, (logprobs, old_logprobs, advantages)), _real(mask)
    loss, gradient, count = 0.0, np.zeros(new.shape), int(real.sum())
    for b, t in zip(*np.nonzero(real), strict=True):
        ratio = math.exp(min(new[b, t] - old[b, t], LARGEST_EXPONENT))
        clipped = min(max(ratio, 1 - clip_range), 1 + clip_range)
        loss -= min(ratio * a[b, t], clipped * a[b, t]) / count
        if ratio * a[b, t] <= clipped * a[b, t]:
            gradient[b, t] = -ratio * a[b, t] / count
    return _Known.apply(logprobs, loss, gradient)  # type: ignore[no-any-return]


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> Tensor:
    v, old, target, real = *map(_array, (values, old_values, returns)), _real(mask)
    loss, gradient, count = 0.0, np.zeros(v.shape), int(real.sum())
    for b, t in zip(*np.nonzero(real), strict=True):
        error = v[b, t] - target[b, t]
        clipped = np.clip(v[b, t], old[b, t] - clip_range, old[b, t] + clip_range) - target[b, t]
        loss += 0.5 * np.maximum(error * error, clipped * clipped) / count
        if error * error >= clipped * clipped:
            gradient[b, t] = error / count
    return _Known.apply(values, loss, gradient)  # type: ignore[no-any-return]
