"""Correct FP32 cores in numpy: pairwise sums, compensated sums, and a kernel's online softmax.

Every operation rounds to FP32; gradients are closed forms. What differs is how sums and ``exp`` are
taken. B sequences, T tokens, V vocabulary, G groups, K samples; masks are True for a real token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]
Softmax = Callable[[Array], tuple[Array, Array, Array]]  # [N, V] -> depth, exp(depth), its sum
LOG2_E = np.float32(1.4426950408889634)
_BLOCK = 64


class _Known(torch.autograd.Function):
    """A value [...] of ``x`` whose slope is known, [..., V] or a scalar's [...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Array, slope: Array) -> Tensor:
        ctx.save_for_backward(torch.from_numpy(np.ascontiguousarray(slope)))
        ctx.dtype = x.dtype
        return torch.from_numpy(np.array(value))

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        if above.dim() and above.dim() < slope.dim():
            above = above.unsqueeze(-1)
        return torch.where(above == 0, 0, slope * above).to(ctx.dtype), None, None


def _known(x: Tensor, value: Any, slope: Any) -> Tensor:
    return _Known.apply(x, value, slope)  # type: ignore[no-any-return]


def _array(x: Tensor) -> Array:
    values: Array = np.ascontiguousarray(x.detach().float().numpy())
    return values


def _real(mask: Tensor) -> NDArray[np.bool_]:
    return mask.detach().bool().numpy()


def pairwise(x: Array) -> Array:
    """Sums over the last dimension, as numpy adds a contiguous row."""
    return np.asarray(np.ascontiguousarray(x).sum(-1, dtype=np.float32))


def compensated(x: Array) -> Array:
    """Neumaier's sum over the last dimension, in runs of 64 that are added the same way."""
    while x.shape[-1] > 1:
        width = -(-x.shape[-1] // _BLOCK) * _BLOCK
        padded = np.zeros((*x.shape[:-1], width), np.float32)
        padded[..., : x.shape[-1]] = x
        runs = padded.reshape(*x.shape[:-1], -1, min(_BLOCK, width))
        total, lost = runs[..., 0].copy(), np.zeros_like(runs[..., 0])
        for k in range(1, runs.shape[-1]):
            term = runs[..., k]
            larger = np.abs(total) >= np.abs(term)
            new = total + term
            lost += np.where(larger, (total - new) + term, (term - new) + total)
            total = new
        x = np.where(np.isfinite(total), total + lost, total)
    return x[..., 0] if x.shape[-1] else np.zeros(x.shape[:-1], np.float32)


def _two_passes(total: Callable[[Array], Array]) -> Softmax:
    def softmax(z: Array) -> tuple[Array, Array, Array]:
        depth = z - z.max(-1, keepdims=True)
        weights = np.exp(depth)
        return depth, weights, total(weights)

    return softmax


def _exp(x: Array) -> Array:
    """``tl.exp``: ex2 of a rounded product."""
    return np.exp2((x * LOG2_E).astype(np.float32))


def online(z: Array) -> tuple[Array, Array, Array]:
    """One pass in blocks of 64 with a running maximum and a running sum, as a Triton kernel."""
    largest = np.full(z.shape[:-1], -np.inf, np.float32)
    running = np.zeros(z.shape[:-1], np.float32)
    for start in range(0, z.shape[-1], _BLOCK):
        block = z[..., start : start + _BLOCK]
        new = np.maximum(largest, block.max(-1))
        nothing = np.isneginf(new)
        safe = np.where(nothing, 0, new).astype(np.float32)
        running = running * np.where(nothing, 0, _exp(largest - safe))
        running = running + pairwise(_exp(block - safe[..., None]))
        largest = new
    depth = z - largest[..., None]
    return depth, _exp(depth), running


def _rows(x: Tensor) -> Array:
    return _array(x).reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class _Core:
    """The nine functions; ``total`` adds over the last dimension."""

    total: Callable[[Array], Array]
    softmax: Softmax
    exp: Callable[[Array], Array] = np.exp

    def token_logprobs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        depth, weights, total = self.softmax(_rows(logits))
        if bool((tokens < 0).any() | (tokens >= logits.shape[-1]).any()):
            raise ValueError("a token outside the vocabulary")
        rows, chosen = np.arange(len(depth)), tokens.reshape(-1).long().numpy()
        slope = -(weights / total[:, None])
        slope[rows, chosen] += 1
        value = depth[rows, chosen] - np.log(total)
        return _known(logits, value.reshape(tokens.shape), slope.reshape(logits.shape))

    def entropy(self, logits: Tensor) -> Tensor:
        depth, weights, total = self.softmax(_rows(logits))
        logprobs = depth - np.log(total)[:, None]
        p = weights / total[:, None]
        finite = np.where(np.isneginf(logprobs), np.float32(0), logprobs)
        value = -self.total(p * finite)
        slope = -p * (finite + value[:, None])
        return _known(logits, value.reshape(logits.shape[:-1]), slope.reshape(logits.shape))

    def kl_penalty(self, policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
        d = _array(policy_logprobs) - _array(ref_logprobs)
        values = {"k1": lambda: d, "k2": lambda: d * d / 2, "k3": lambda: np.expm1(-d) + d}
        slopes = {
            "k1": lambda: np.ones_like(d),
            "k2": lambda: d,
            "k3": lambda: -np.expm1(-d),
        }
        return _known(policy_logprobs, values[estimator](), slopes[estimator]())

    def _sum(self, x: Array) -> Any:
        return self.total(x.reshape(1, -1))[0]

    def masked_mean(self, x: Tensor, mask: Tensor) -> Tensor:
        real = _real(mask)
        count = np.float32(max(int(real.sum()), 1))
        value = self._sum(np.where(real, _array(x), np.float32(0))) / count
        return _known(x, value, real.astype(np.float32) / count)

    def _standardised(self, x: Array) -> Array:
        """The last dimension with mean 0 and sample std 1, taken relative to its first value."""
        y = x - x[..., :1]
        count = max(x.shape[-1], 1)
        mean = self.total(y) / np.float32(count)
        centred = y - mean[..., None]
        variance = self.total(centred * centred) / np.float32(max(count - 1, 1))
        std = np.sqrt(variance)[..., None]
        return np.where(std == 0, np.float32(0), centred / np.where(std == 0, 1, std))

    def whiten(self, x: Tensor, mask: Tensor) -> Tensor:
        real, result = _real(mask), np.zeros(x.shape, np.float32)
        if real.any():
            result[real] = self._standardised(_array(x)[real][None])[0]
        return torch.from_numpy(result)

    def group_advantages(self, rewards: Tensor) -> Tensor:
        return torch.from_numpy(self._standardised(_array(rewards)).astype(np.float32))

    def gae(
        self, rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
    ) -> tuple[Tensor, Tensor]:
        real = _real(mask)
        r, v = (np.where(real, _array(x), np.float32(0)) for x in (rewards, values))
        g, decay = np.float32(gamma), np.float32(gamma) * np.float32(lam)
        advantages = np.zeros_like(r)
        carry, following = (np.zeros(len(r), np.float32) for _ in range(2))
        for t in reversed(range(r.shape[1])):  # over real tokens: a masked slot carries on
            new = r[:, t] + g * following - v[:, t] + decay * carry
            carry = np.where(real[:, t], new, carry)
            following = np.where(real[:, t], v[:, t], following)
            advantages[:, t] = np.where(real[:, t], new, np.float32(0))
        return torch.from_numpy(advantages), torch.from_numpy(advantages + v)

    def policy_loss(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        clip_range: float,
    ) -> Tensor:
        real = _real(mask)
        new, old, a = (
            np.where(real, _array(x), np.float32(0)) for x in (logprobs, old_logprobs, advantages)
        )
        ratio, up = self.exp(new - old), a >= 0
        limit = np.where(up, np.float32(1 + clip_range), np.float32(1 - clip_range))
        by_ratio = np.where(up, ratio <= limit, ratio >= limit)
        by_ratio |= np.isnan(ratio)
        counted = np.where(by_ratio, ratio, limit)
        terms = np.where(a == 0, np.float32(0), a) * np.where(a == 0, np.float32(0), counted)
        terms = np.where(np.isnan(a + ratio), np.float32(np.nan), terms)
        count = np.float32(max(int(real.sum()), 1))
        slope = np.where(by_ratio & (a != 0), -a * np.where(a == 0, 0, ratio) / count, 0)
        return _known(logprobs, -self._sum(terms) / count, slope.astype(np.float32))

    def value_loss(
        self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
    ) -> Tensor:
        real, c = _real(mask), np.float32(clip_range)
        v, old, target = (
            np.where(real, _array(x), np.float32(0)) for x in (values, old_values, returns)
        )
        error, clipped = v - target, np.clip(v, old - c, old + c) - target
        count = np.float32(max(int(real.sum()), 1))
        value = self._sum(np.maximum(error * error, clipped * clipped)) / (2 * count)
        slope = np.where(error * error >= clipped * clipped, error, np.float32(0)) / count
        return _known(values, value, slope)


def _functions(core: _Core) -> SimpleNamespace:
    """The functions with numpy's warnings of overflow switched off: inf is a legal number here."""
    names = [name for name in vars(_Core) if not name.startswith("_")]
    names = [name for name in names if callable(getattr(core, name)) and name not in core.__dict__]
    return SimpleNamespace(
        **{name: np.errstate(all="ignore")(getattr(core, name)) for name in names}
    )


fp32_pairwise = _functions(_Core(pairwise, _two_passes(pairwise)))
fp32_compensated = _functions(_Core(compensated, _two_passes(compensated)))
fp32_online_softmax = _functions(_Core(pairwise, online, _exp))
