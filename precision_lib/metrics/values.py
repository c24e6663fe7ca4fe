"""Values on the grid of a format: their steps, their updates, and the advantages they leave.

The hazard. A value head has no natural scale: its predictions are as large as the returns. bf16 has
a step of 2**-7 at 1 and of 64 at 10,000, so the usual worry is the magnitude. But what an advantage
loses is the step *relative to the spread of the advantages*, and scaling all rewards scales both.
What starves an advantage is an offset: values that are large compared with how much they differ.
Magnitude alone only makes predictions stand still, because Adam's steps do not grow with it; with
FP32 master weights that is a delay and no loss. So both are measured, apart.

========================  ======================================================================
metric                    on M response tokens; gamma 1, lambda 0.95, score at the last token
========================  ======================================================================
value_quant_step_median   median step of the value format at the predictions, reward units
value_stagnation_rate     share of (token, optimizer step) at which the twin's prediction moved
                          and the configuration's did not; the twin is the golden head
value_td_zero_frac        share of TD errors that are exactly zero though the golden is not
advantage_rms_error       RMS(a - a_golden) / RMS(a_golden) of whitened advantages; the latter is
                          1 over the whole batch, and another number in each resample of it
========================  ======================================================================

Golden: FP32 trunk and FP32 head on the same tokens; a configuration that is FP32 in both is itself
the golden path and is measured against the float64 model.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from precision_lib.formats import get_format, ulp
from precision_lib.ppo import advantages, masked

GAMMA, LAMBDA = 1.0, 0.95


def whitened_advantages(values: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """[M] float64 GAE advantages, whitened over all real tokens, as PPO's loss sees them.

    Args:
        values: [M] in any format, one sequence after the other.
        rewards: [N, T]; mask: [N, T] bool, right-padded, M of them True.
    """
    table = torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)
    raw, _ = advantages.gae(rewards.to(_wider(values)), table, mask, GAMMA, LAMBDA)
    return masked.whiten(raw, mask)[mask].double()


def _wider(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def td_errors(values: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """[M] float64 r_t + gamma V_(t+1) - V_t, the value behind the last token being 0."""
    table = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, values.double())
    following = torch.nn.functional.pad(table[:, 1:], (0, 1))
    return (rewards.double() + GAMMA * following - table)[mask]


def value_quantities(
    values: Tensor, golden: Tensor, rewards: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """[M] float64 summands of the metrics that need no optimizer step, by name; finite.

    Args:
        values, golden: [M] predictions; rewards: [N, T]; mask: [N, T] bool, right-padded.
    """
    exact = td_errors(golden, rewards, mask)
    wanted = whitened_advantages(golden, rewards, mask)
    error = whitened_advantages(values, rewards, mask) - wanted
    return {
        "tokens": torch.ones_like(exact),
        "error2": error**2,
        "signal2": wanted**2,
    } | lost_td_errors(td_errors(values, rewards, mask), exact)


def lost_td_errors(td: Tensor, golden: Tensor) -> dict[str, Tensor]:
    """[M] float64 each: golden TD errors that are not zero, and those that came out as zero."""
    nonzero = golden != 0
    return {"td_nonzero": nonzero.double(), "td_zero": ((td == 0) & nonzero).double()}


def finite_quantities(
    values: Tensor, golden: Tensor, rewards: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """:func:`value_quantities`, and ``nonfinite``: such a prediction is replaced by the golden."""
    finite, wide = torch.isfinite(values), _wider(values)
    golden = torch.where(torch.isfinite(golden), golden, 0)  # infinite itself in a noise floor
    filled = torch.where(finite, values.to(wide), golden.to(wide))
    quantities = value_quantities(filled, golden, rewards, mask)
    return quantities | {"nonfinite": (~finite).double()}


def moves(predictions: Tensor, twin: Tensor) -> tuple[Tensor, Tensor]:
    """([M] stagnant, [M] twin moved), each a count of optimizer steps.

    Args:
        predictions, twin: [S + 1, M], before and after each step.
    """
    twin_moved = twin[1:] != twin[:-1]
    still = predictions[1:] == predictions[:-1]
    return (still & twin_moved).sum(0).double(), twin_moved.sum(0).double()


def predicted_stagnation(twin: Tensor, fmt: str) -> float:
    """Stagnation rate that storing the twin's predictions in ``fmt`` must give.

    A value at a random phase of a grid of step h keeps its cell under a move of d with
    probability max(0, 1 - |d| / h), as for H1's zero log-ratios. 1 where the twin never moves.
    """
    before, after = twin[:-1].double(), twin[1:].double()
    move = (after - before).abs()
    still = (1 - move / ulp(before, get_format(fmt))).clamp(min=0)
    return float(still[move > 0].mean()) if bool((move > 0).any()) else 1.0


def rounding_gain(lam: float) -> float:
    """Variance of an advantage over that of the independent errors of the values, gamma = 1.

    1 + (1 - lambda)^2 / (1 - lambda^2) = 2 / (1 + lambda), far from the end of the sequence.
    """
    return 2 / (1 + lam)


def predicted_advantage_error(golden: Tensor, rewards: Tensor, mask: Tensor, fmt: str) -> float:
    """``advantage_rms_error`` that rounding the stored values to ``fmt`` must give.

    Rounding adds e_t, independent and uniform on half a step h_t on either side. With gamma = 1
    the advantage changes by -e_t + (1 - lambda) sum_(j >= 1) lambda^(j-1) e_(t+j), whose variance
    is h^2/12 * (1 + (1 - lambda)^2 / (1 - lambda^2)) = h^2/12 * 2 / (1 + lambda), the end of the
    sequence aside, where there is no e behind the last token. Whitening divides by the standard
    deviation of the advantages. Holds while h is small against it.
    """
    table = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, golden.double())
    raw, _ = advantages.gae(rewards.double(), table, mask, GAMMA, LAMBDA)
    variance = ulp(golden, get_format(fmt)) ** 2 / 12 * rounding_gain(LAMBDA)
    return float((variance.mean() / raw[mask].var()).sqrt())


def update_error(predictions: Tensor, twin: Tensor) -> float:
    """RMS(move - twin's move) / RMS(twin's move) of the predictions over all optimizer steps.

    1, a move lost whole, where the twin itself has not moved: nothing can be gained on it.
    """
    moved, wanted = (x[-1].double() - x[0].double() for x in (predictions, twin))
    size = float(wanted.square().mean().sqrt())
    return float((moved - wanted).square().mean().sqrt()) / size if size > 0 else 1.0


def crossing(sizes: Sequence[float], errors: Sequence[float], limit: float) -> float | None:
    """Size at which an error first passes ``limit``; None where it never does.

    Log-log between the points, linear next to a size or an error of 0; the first size where the
    error is above the limit already there.

    Args:
        sizes: ascending, 0 or more; errors: one per size.
    """
    if errors[0] > limit:
        return float(sizes[0])
    for (x0, y0), (x1, y1) in pairwise(zip(sizes, errors, strict=True)):
        if y0 <= limit < y1:
            if x0 > 0 and y0 > 0:
                return float(x0 * (x1 / x0) ** (math.log(limit / y0) / math.log(y1 / y0)))
            return float(x0 + (x1 - x0) * (limit - y0) / (y1 - y0))
    return None
