"""The loss of direct preference optimisation.

The hazard. log(sigmoid(x)) is -inf from x = -104 on in FP32, and its gradient 0 / 0; in bf16 the
difference of two sequence log-probs of -500 is a multiple of 4 before beta sees it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from precision_lib.ppo.gradients import with_slope
from precision_lib.ppo.logit_pieces import fp32_or_wider


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Mean over pairs of -log sigmoid(beta m), m = (pc - rc) - (pr - rr).

    The gradient is -beta sigmoid(-beta m) / B in ``policy_chosen`` and the opposite in
    ``policy_rejected``; none flows to the reference.

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: [B], log-probs of whole responses
            in nats, any floating-point format.
        beta: > 0.

    Returns:
        Scalar, float64 if an input is, else float32.

    Raises:
        ValueError: for shapes that are not one [B] with B >= 1, or a beta that is not positive.

    Source: Rafailov et al., "Direct Preference Optimization", equation 7.
    """
    given = (policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    if len({x.shape for x in given}) > 1 or policy_chosen.dim() != 1 or not len(policy_chosen):
        raise ValueError(
            f"expected four log-probs of one shape [B], got {[tuple(x.shape) for x in given]}"
        )
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    policy = policy_chosen.double() - policy_rejected.double()
    with torch.no_grad():
        x = beta * (policy - (ref_chosen.double() - ref_rejected.double()))
        loss = F.softplus(-x).mean().to(fp32_or_wider(*given))
        slope = torch.sigmoid(-x).mul_(-beta / len(x))
    if not (policy.requires_grad and torch.is_grad_enabled()):
        return loss
    return with_slope(policy, loss, slope)
