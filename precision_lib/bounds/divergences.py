"""Bound of the generalised Jensen-Shannon divergence, and of its gradient.

Teacher p, student q, m = beta p + (1 - beta) q; b_v is the bound of a log-prob (``softmax.py``).
Each KL is a sum of terms of both signs: near agreement the bound is absolute, not relative.
"""

import torch
from torch import Tensor

from precision_lib.arguments import Divergence, taking
from precision_lib.bounds.model import FP32, FUNCTION_ERROR, gamma, sum_depth
from precision_lib.bounds.softmax import log_softmax_bound
from precision_lib.formats import Format


class _Terms:
    """Student, teacher and mixture of logits [..., V], with the errors of their log-probs.

    The mixture is log(beta p + (1 - beta) q), in logarithms or not: the larger of the errors of
    log p and log q, 8u of exp, of log, and again of log1p, 4u of factors and sums, and 9u |log m|.

    Attributes:
        q, p: probabilities. of_q, of_p: log(q / m), log(p / m), 0 at a zero probability.
        error_q, error_p: absolute errors of of_q and of_p; one_q, one_p: of log q and log p.
    """

    def __init__(self, student: Tensor, teacher: Tensor, beta: float, fmt: Format) -> None:
        u = fmt.unit_roundoff
        (self.q, log_q, self.one_q), (self.p, log_p, self.one_p) = (
            _entries(x.double(), fmt) for x in (student, teacher)
        )
        mixture = beta * self.p + (1 - beta) * self.q
        log_m = torch.where(mixture > 0, mixture.log(), 0)
        larger = torch.maximum(self.one_q, self.one_p)
        of_m = larger + (3 * FUNCTION_ERROR + 4) * u + (FUNCTION_ERROR + 1) * u * log_m.abs()
        self.of_q = torch.where(self.q > 0, log_q - log_m, 0)
        self.of_p = torch.where(self.p > 0, log_p - log_m, 0)
        self.error_q = self.one_q + of_m + u * (log_q.abs() + log_m.abs())
        self.error_p = self.one_p + of_m + u * (log_p.abs() + log_m.abs())
        self.relative_q = self.one_q + (FUNCTION_ERROR + 3) * u
        self.relative_p = self.one_p + (FUNCTION_ERROR + 3) * u

    def divergence_error(self, which: str, fmt: Format) -> Tensor:
        """Bound of KL(q || m) or KL(p || m): [...] float64."""
        share, log_share = getattr(self, which), getattr(self, f"of_{which}")
        error, relative = getattr(self, f"error_{which}"), getattr(self, f"relative_{which}")
        terms = share * (error + log_share.abs() * (relative + gamma(self._depth(), fmt)))
        flushed = torch.where(share > 0, fmt.smallest_normal * (1 + log_share.abs()), 0)
        total: Tensor = (terms + flushed).sum(-1)
        return total

    def _depth(self) -> int:
        return sum_depth(self.q.shape[-1]) + 2


def _entries(z: Tensor, fmt: Format) -> tuple[Tensor, Tensor, Tensor]:
    """(p, log p with 0 for -inf, bound of it), [..., V]."""
    logprobs = torch.log_softmax(z, -1)
    plain = log_softmax_bound(z, torch.zeros_like(logprobs[..., 0]), fmt).unsqueeze(-1)
    size = torch.where(torch.isfinite(logprobs), logprobs, 0)
    each = plain + 2 * fmt.unit_roundoff * size.abs()
    return logprobs.exp(), size, torch.where(torch.isfinite(logprobs), each, 0)


@taking(Divergence)
def jsd_bound(x: Divergence[Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for beta KL(p || m) + (1 - beta) KL(q || m).

    A term p log(p / m) has the errors of the two logarithms, the relative error of p, b + 11u, and
    the sum's. Both parts and their sum round twice more.

    Args:
        student_logits, teacher_logits: [..., V].

    Returns:
        [...] float64, nats.
    """
    terms = _Terms(x.student_logits, x.teacher_logits, x.beta, fmt)
    of_p, of_q = (terms.divergence_error(which, fmt) for which in ("p", "q"))
    sizes = x.beta * (terms.p * terms.of_p.abs()).sum(-1)
    sizes = sizes + (1 - x.beta) * (terms.q * terms.of_q.abs()).sum(-1)
    return x.beta * of_p + (1 - x.beta) * of_q + 4 * fmt.unit_roundoff * sizes


@taking(Divergence)
def jsd_gradient_bound(x: Divergence[Tensor], upstream: Tensor, fmt: Format = FP32) -> Tensor:
    """Bound for upstream (1 - beta) q_v (log(q_v / m_v) - KL(q || m)).

    It holds for that form and for differentiating step by step, through log-softmax, mixture and
    both sums. There parts of size q_v (|log(q/m)| + 1) and q_v sum_w q_w (|log(q/m)| + 1) are
    subtracted, each with the relative errors of q, p and m, some ten operations, and the sum's.

    Returns:
        [..., V] float64; 0 at a zero probability of the student.
    """
    u = fmt.unit_roundoff
    terms = _Terms(x.student_logits, x.teacher_logits, x.beta, fmt)
    each = terms.error_q + terms.one_p + (FUNCTION_ERROR + 10) * u
    sizes = terms.of_q.abs() + 1
    mean_size = (terms.q * sizes).sum(-1, keepdim=True)
    of_sum = terms.divergence_error("q", fmt).unsqueeze(-1)
    of_sum = of_sum + (terms.q * each).sum(-1, keepdim=True)
    of_sum = of_sum + gamma(sum_depth(terms.q.shape[-1]) + 2, fmt) * mean_size
    own = terms.q * (each * (sizes + mean_size) + of_sum)
    own = own + torch.where(terms.q > 0, fmt.smallest_normal * (sizes + mean_size), 0)
    up = (1 - x.beta) * upstream.double().abs().unsqueeze(-1)
    residue = torch.where(
        x.student_logits == x.student_logits.max(-1, keepdim=True).values,
        own.sum(-1, keepdim=True),
        0,
    )
    return up * (own + residue) + torch.where(own > 0, fmt.smallest_subnormal, 0)
