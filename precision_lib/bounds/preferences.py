"""Bound of the loss of direct preference optimisation, and of its gradient.

m = (pc - rc) - (pr - rr), x = beta m; all inputs [B].
"""

import torch
from torch import Tensor

from precision_lib.arguments import Dpo, taking
from precision_lib.bounds.model import FP32, FUNCTION_ERROR, infinite_beyond, mean_bound
from precision_lib.formats import Format


def _argument(x: Dpo[Tensor], fmt: Format) -> tuple[Tensor, Tensor]:
    """(beta m, its error): two differences, of the policies or of the chosen, then theirs.

    Each difference rounds once, in whichever order they are taken; beta and the product: 3u |x|.
    """
    given = x.policy_chosen, x.policy_rejected, x.ref_chosen, x.ref_rejected
    (a, b, c, d), beta = (y.double() for y in given), x.beta
    margin, u = (a - c) - (b - d), fmt.unit_roundoff
    parts = torch.maximum((a - b).abs() + (c - d).abs(), (a - c).abs() + (b - d).abs())
    return beta * margin, u * beta * (parts + margin.abs()) + 3 * u * (beta * margin).abs()


@taking(Dpo)
def dpo_loss_bound(x: Dpo[Tensor], fmt: Format = FP32) -> Tensor:
    """Bound for the mean of log(1 + exp(-x)).

    An error e of x moves a term by sigmoid(-x) (e^e - 1) at most; exp, log1p and the last sum add
    20u of the term. The mean follows :func:`mean_bound`.

    Returns:
        Scalar, float64.
    """
    margin, error = _argument(x, fmt)
    terms = torch.nn.functional.softplus(-margin, threshold=700)
    relative = (2 * FUNCTION_ERROR + 4) * fmt.unit_roundoff
    errors = torch.sigmoid(-margin) * torch.expm1(error) + relative * terms + fmt.smallest_normal
    of_sum = mean_bound(float((terms + errors).sum()), terms.numel(), fmt)
    return infinite_beyond(terms.mean(), errors.mean() + of_sum, fmt)


@taking(Dpo)
def dpo_loss_gradient_bounds(x: Dpo[Tensor], fmt: Format = FP32) -> tuple[Tensor, Tensor]:
    """Bound for -+ beta sigmoid(-x) / B: e^e - 1, and 24u of exp, quotients and products.

    Returns:
        ([B], [B]) float64: of ``policy_chosen`` and of ``policy_rejected``.
    """
    margin, error = _argument(x, fmt)
    size = x.beta * torch.sigmoid(-margin) / len(margin)
    relative = torch.expm1(error) + 3 * FUNCTION_ERROR * fmt.unit_roundoff
    bound = size * relative + fmt.smallest_normal
    return bound, bound
