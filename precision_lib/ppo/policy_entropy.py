"""Entropy of the policy's distribution over the vocabulary.

The hazards. ``-(p * log p).sum()`` is NaN as soon as one logit is -inf (a masked token, a padded
vocabulary): 0 times -inf; eight of eight implementations measured do it. ``logsumexp`` minus
``(p * z).sum()`` cancels at a logit offset: at 1e4 it comes out negative. In bf16 the entropy of a
confident token has an error of its own size. Here all terms are non-negative; nothing cancels.

B sequences, T tokens, V vocabulary entries.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from precision_lib.ppo.logit_pieces import (
    LOG2_E,
    as_sequences,
    fitted,
    fp32_or_wider,
    row_buffer,
    row_pieces,
)

#: z - max z is cut off here: exp of it is 0 in every format, and 0 times it is 0, unlike 0 * -inf.
_ZERO_PROBABILITY = -1e4
#: FP32 numbers of the two AVX-512 vectors that a step of torch's CPU loops takes.
_VECTORS = 32


def entropy(logits: Tensor) -> Tensor:
    """H = log s + sum_v (-d_v) exp(d_v) / s, with d_v = z_v - max z and s = sum_v exp(d_v).

    Extra memory: two buffers of a MiB on a CPU, of 16 on a GPU; backward adds the gradient. A slot
    whose upstream gradient is 0 gets a gradient of exactly 0, whatever its logits hold.

    Args:
        logits: [B, T, V], any floating-point format; -inf is a legal zero probability, +inf and
            a row of nothing but -inf are not a distribution and give NaN in their slot.

    Returns:
        [B, T], nats, float64 for float64 logits and float32 otherwise.

    Raises:
        ValueError: when ``logits`` is not three-dimensional.
        TypeError: when it does not hold floating-point numbers.
    """
    if logits.dim() != 3:
        raise ValueError(f"expected logits [B, T, V], got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating-point numbers, got {logits.dtype}")
    return _Entropy.apply(logits)  # type: ignore[no-any-return]  # apply is untyped


class _Entropy(torch.autograd.Function):
    """Entropy of logits [B, T, V]; keeps the logits and three numbers per row for backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        inside = fp32_or_wider(logits)
        sequences = as_sequences(logits)
        largest = torch.empty(*sequences.shape[:2], 1, dtype=inside, device=logits.device)
        log_sum, mean_depth = torch.empty_like(largest), torch.empty_like(largest)
        spare = row_buffer(sequences, inside)
        for rows, z in row_pieces(sequences, inside):
            torch.amax(z, -1, keepdim=True, out=largest[rows])
            z.sub_(largest[rows]).clamp_(min=_ZERO_PROBABILITY)
            weights = _exp(z, fitted(spare, z))
            torch.sum(weights, -1, keepdim=True, out=log_sum[rows])
            torch.sum(weights.mul_(z), -1, keepdim=True, out=mean_depth[rows])
        mean_depth.div_(log_sum)
        log_sum.log_()
        ctx.save_for_backward(logits, largest, log_sum, mean_depth)
        return (log_sum - mean_depth).view(logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        """dH / dz_v = -p_v (log p_v + H) = -p_v (d_v - E[d])."""
        logits, largest, log_sum, mean_depth = ctx.saved_tensors
        sequences, g = as_sequences(logits), upstream.reshape(largest.shape)
        gradient = torch.empty(sequences.shape, dtype=logits.dtype, device=logits.device)
        spare = row_buffer(sequences, largest.dtype)
        for rows, z in row_pieces(sequences, largest.dtype):
            z.sub_(largest[rows]).clamp_(min=_ZERO_PROBABILITY)
            p = torch.sub(z, log_sum[rows], out=fitted(spare, z)).exp_()
            p.mul_(z.sub_(mean_depth[rows])).mul_(-g[rows])
            gradient[rows] = p.masked_fill_(g[rows] == 0, 0)
        return gradient.view(logits.shape)


def _exp(z: Tensor, out: Tensor) -> Tensor:
    """exp(z) in ``out``, by way of exp2 (:data:`LOG2_E`) where rows fill whole vectors.

    torch computes the end of a row that fills no vector by another exp2, whose last bits differ.
    The same row would then have other bits alone than in a batch.
    """
    if z.shape[-1] % _VECTORS:
        return torch.exp(z, out=out)
    return torch.mul(z, LOG2_E, out=out).exp2_()
