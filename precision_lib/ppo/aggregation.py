"""The mean of a loss over a batch that is computed in parts.

The hazard. The mean of the means of micro-batches, ranks or chunks is the mean of the whole only
where all parts have as many tokens. Losses of 4 on one token and of 1 on three tokens have the
mean 1.75; the mean of their two means is 2.5. So every part is divided by the denominator of the
whole batch, and the parts are added.

B sequences, T tokens; ``mask[b, t]`` is True for a real token. Real tokens may lie anywhere.
"""

import torch
from torch import Tensor

from precision_lib.ppo.gradients import with_slope
from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.masked import check_mask, real_or_zero

MODES = ("token_mean", "sequence_mean", "sequence_mean_token_sum", "constant")


def aggregate(values: Tensor, mask: Tensor, mode: str, denominator: float | None = None) -> Tensor:
    """One loss from the losses of tokens; D is the denominator.

    ``token_mean``, ``sequence_mean_token_sum``, ``constant``: sum_bt values_bt / D over real
    tokens. ``sequence_mean``: sum_b (mean_t values_bt) / D. D is by default the number of real
    tokens for ``token_mean`` and the number of sequences with a real token for the two sequence
    modes; ``constant`` has no default. A part of a batch gets the D of the whole batch: then the
    results of the parts add up to that of the whole, and so do their gradients. Parts of
    ``sequence_mean`` have to hold whole sequences.

    Args:
        values: [B, T], any floating-point format; masked slots may hold NaN or inf.
        mask: [B, T], bool. mode: one of :data:`MODES`.
        denominator: D > 0, in tokens or sequences; for ``constant`` any unit, such as B times the
            largest length of a response.

    Returns:
        Scalar, float64 for float64 values and float32 otherwise; 0 for an empty mask.

    Raises:
        ValueError: for shapes that differ, a mask that is not bool, an unknown mode, a denominator
            that is not positive, or none for ``constant``.

    Source: token_mean: Yu et al., "DAPO", equation 8; sequence_mean: Shao et al., "DeepSeekMath",
    equation 3; constant: Liu et al., "Understanding R1-Zero-Like Training" (Dr. GRPO).
    """
    check_mask(mask, values=values)
    if values.dim() != 2:
        raise ValueError(f"expected values [B, T], got {tuple(values.shape)}")
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; use one of {', '.join(MODES)}")
    if mode == "constant" and denominator is None:
        raise ValueError("mode 'constant' needs a denominator")
    with torch.no_grad():
        lengths = mask.sum(-1)
        if mode == "token_mean":
            total = count_or_given(lengths.sum(), denominator)
        else:
            total = count_or_given((lengths > 0).sum(), denominator)
        of_rows = real_or_zero(values, mask).sum(-1, dtype=torch.float64)
        if mode == "sequence_mean":
            total = total * lengths.clamp(min=1)
        loss = (of_rows / total).sum().to(fp32_or_wider(values))
    if not (values.requires_grad and torch.is_grad_enabled()):
        return loss
    slope = (1 / (torch.ones_like(of_rows) * total)).to(loss.dtype).unsqueeze(-1) * mask
    return with_slope(values, loss, slope)


def count_or_given(count: Tensor, denominator: float | None) -> Tensor:
    """The denominator of a mean: the given one, or ``count``, at least 1; float64 scalar.

    Raises:
        ValueError: when the given one is not positive.
    """
    if denominator is None:
        return count.clamp(min=1).double()
    if not denominator > 0:
        raise ValueError(f"the denominator must be positive, got {denominator}")
    return torch.as_tensor(denominator, dtype=torch.float64, device=count.device)
