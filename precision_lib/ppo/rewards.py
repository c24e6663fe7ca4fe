"""Rewards per token: the KL penalty everywhere, the score at the last real token.

The hazard. A score placed at the last *column* instead of the last real token is lost to padding;
a score broadcast over the sequence is counted T times. In bf16 a score of 8 swallows every KL
penalty below 0.016. A NaN in a padded slot of the KL leaks through a product with the mask.

B sequences, T tokens.
"""

import math

import torch
from torch import Tensor

from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.masked import check_mask, real_or_zero


@torch.no_grad()
def assemble_rewards(
    scores: Tensor,
    kl: Tensor,
    mask: Tensor,
    kl_coefficient: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """r_t = -kl_coefficient * kl_t, plus the score where t is the last real token; no gradient.

    Args:
        scores: [B], one per sequence, any floating-point format.
        kl: [B, T], per-token KL estimates; masked slots may hold NaN or inf.
        mask: [B, T], bool; True for a real token. Masked slots may stand anywhere.
        kl_coefficient: weight of the penalty, >= 0.
        dtype: the format of the arithmetic, default FP32 or the inputs' own if wider; inputs are
            cast to it first and every operation rounds to it.

    Returns:
        [B, T] of ``dtype``, 0 in masked slots.

    Raises:
        ValueError: for shapes that do not fit, a mask that is not bool, a negative coefficient, or
            a sequence without a real token, whose score would be lost.
    """
    check_mask(mask, kl=kl)
    if mask.dim() != 2:
        raise ValueError(f"expected a mask [B, T], got {tuple(mask.shape)}")
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"expected scores [{mask.shape[0]}], got {tuple(scores.shape)}")
    if not 0 <= kl_coefficient < math.inf:
        raise ValueError(f"kl_coefficient must be finite and not negative, got {kl_coefficient}")
    empty = (~mask.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"sequences {empty} have no real token to carry their score")
    wanted = dtype or fp32_or_wider(scores, kl)
    rewards = real_or_zero(kl, mask).to(wanted).mul_(-kl_coefficient)
    if not mask.numel():
        return rewards
    slots = torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device)
    last = (mask * slots).amax(-1, keepdim=True).long()
    return rewards.scatter_add_(1, last, scores.detach().to(wanted).unsqueeze(-1))
