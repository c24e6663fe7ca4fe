"""Bound of the loss of direct preference optimisation, and of its gradient.

m = (pc - rc) - (pr - rr), x = beta m; all inputs [B].
"""

import torch
from torch import Tensor

from precision_lib.bounds.model import FP32, FUNCTION_ERROR, infinite_beyond, mean_bound
from precision_lib.formats import Format


def _argument(
    pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float, fmt: Format
) -> tuple[Tensor, Tensor]:
    """(x, its error). Two differences, of the policies or of the chosen, then theirs, times beta.

    Each difference rounds once, in whichever order they are taken; beta and the product: 3u |x|.
    """
    a, b, c, d = (x.double() for x in (pc, pr, rc, rr))
    margin, u = (a - c) - (b - d), fmt.unit_roundoff
    parts = torch.maximum((a - b).abs() + (c - d).abs(), (a - c).abs() + (b - d).abs())
    return beta * margin, u * beta * (parts + margin.abs()) + 3 * u * (beta * margin).abs()


def dpo_loss_bound(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    fmt: Format = FP32,
) -> Tensor:
    """Bound for the mean of log(1 + exp(-x)).

    An error e of x moves a term by sigmoid(-x) (e^e - 1) at most; exp, log1p and the last sum add
    20u of the term. The mean follows :func:`mean_bound`.

    Returns:
        Scalar, float64.
    """
    given = policy_chosen, policy_rejected, ref_chosen, ref_rejected
    x, error = _argument(*given, beta, fmt)
    terms = torch.nn.functional.softplus(-x, threshold=700)
    relative = (2 * FUNCTION_ERROR + 4) * fmt.unit_roundoff
    errors = torch.sigmoid(-x) * torch.expm1(error) + relative * terms + fmt.smallest_normal
    of_sum = mean_bound(float((terms + errors).sum()), terms.numel(), fmt)
    return infinite_beyond(terms.mean(), errors.mean() + of_sum, fmt)


def dpo_loss_gradient_bounds(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    fmt: Format = FP32,
) -> tuple[Tensor, Tensor]:
    """Bound for -+ beta sigmoid(-x) / B: e^e - 1, and 24u of exp, quotients and products.

    Returns:
        ([B], [B]) float64: of ``policy_chosen`` and of ``policy_rejected``.
    """
    given = policy_chosen, policy_rejected, ref_chosen, ref_rejected
    x, error = _argument(*given, beta, fmt)
    size = beta * torch.sigmoid(-x) / len(x)
    relative = torch.expm1(error) + 3 * FUNCTION_ERROR * fmt.unit_roundoff
    bound = size * relative + fmt.smallest_normal
    return bound, bound
