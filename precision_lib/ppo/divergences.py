"""The generalised Jensen-Shannon divergence of distillation.

The hazards. p (log p - log m) with log-probs of two models that agree is a small sum of large
terms of both signs; the log of a mixture that is taken as log(p + q) in probability space is -inf
where both underflow. A -inf logit is 0 * -inf.

B sequences, T tokens, V vocabulary entries.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from precision_lib.ppo.logit_pieces import as_sequences, fp32_or_wider, row_pieces

#: z - max z is cut off here: exp of it is 0 in every format, and 0 times it is 0, unlike 0 * -inf.
_ZERO_PROBABILITY = -1e4


def jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float) -> Tensor:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.

    With the log-ratio d = log p - log q of teacher p and student q: log(q / m) is
    -log1p(beta expm1(d)) for d <= 0, and log(p / m) is -log1p((1 - beta) expm1(-d)) for d > 0;
    nothing overflows. The gradient is (1 - beta) q_v (log(q_v / m_v) - KL(q || m)); it flows to
    ``student_logits`` alone. A few rows at a time; backward adds the gradient.

    Args:
        student_logits, teacher_logits: [B, T, V], any floating-point format; -inf is a zero
            probability.
        beta: in (0, 1); towards 0 it is beta times KL(teacher || student), 0.5 the symmetric one.

    Returns:
        [B, T], nats, float64 if an input is, else float32.

    Raises:
        ValueError: for shapes that differ or are not [B, T, V], or a beta out of its range.

    Source: Agarwal et al., "On-Policy Distillation of Language Models" (GKD), equation 1.
    """
    if student_logits.dim() != 3 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"expected logits [B, T, V] of one shape, got {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie between 0 and 1, got {beta}")
    return _Jsd.apply(student_logits, teacher_logits.detach(), beta)  # type: ignore[no-any-return]  # apply is untyped


class _Jsd(torch.autograd.Function):
    """Divergence of logits [B, T, V]; keeps both logits and makes the rows again for backward."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.beta = beta
        inside = fp32_or_wider(student, teacher)
        result = torch.empty(student.shape[:-1], dtype=inside, device=student.device)
        view, pieces = result.view(_rows_of(student)), _pieces(student, teacher, inside)
        for rows, log_q, log_p in pieces:
            of_student, of_teacher = _log_shares(log_q, log_p, beta)
            terms = log_p.exp_().mul_(of_teacher).mul_(beta)
            terms.add_(log_q.exp_().mul_(of_student), alpha=1 - beta)
            view[rows] = terms.sum(-1)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        student, teacher = ctx.saved_tensors
        inside = fp32_or_wider(student, teacher)
        gradient = torch.empty(student.shape, dtype=student.dtype, device=student.device)
        view = gradient.view(*_rows_of(student), -1)
        g = upstream.reshape(_rows_of(student)).unsqueeze(-1)
        for rows, log_q, log_p in _pieces(student, teacher, inside):
            of_student, _ = _log_shares(log_q, log_p, ctx.beta)
            q = log_q.exp_()
            mean = (q * of_student).sum(-1, keepdim=True)
            slope = of_student.sub_(mean).mul_(q).mul_((1 - ctx.beta) * g[rows])
            view[rows] = slope.masked_fill_(g[rows] == 0, 0).to(student.dtype)
        return gradient, None, None


def _rows_of(logits: Tensor) -> tuple[int, int]:
    return 1, logits.shape[0] * logits.shape[1]


def _pieces(student: Tensor, teacher: Tensor, inside: torch.dtype) -> Any:
    """(place, log q, log p) of a few rows at a time, cut off where the probability is 0."""
    both = [as_sequences(x.reshape(1, -1, x.shape[-1])) for x in (student, teacher)]
    for (rows, z), (_, w) in zip(*(row_pieces(x, inside) for x in both), strict=True):
        yield rows, _log_softmax(z), _log_softmax(w)


def _log_softmax(z: Tensor) -> Tensor:
    """In place, by blocked sums; at least -1e4."""
    z.sub_(z.amax(-1, keepdim=True)).clamp_(min=_ZERO_PROBABILITY)
    return z.sub_(z.exp().sum(-1, keepdim=True).log_())


def _log_shares(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(log(q / m), log(p / m)) without overflow; new tensors."""
    d = log_p - log_q
    towards = torch.where(d > 0, 1 - beta, beta).to(d.dtype)
    share = d.abs().neg_().expm1_().mul_(towards).log1p_().neg_()
    return torch.where(d > 0, share - d, share), torch.where(d > 0, share, share + d)
