"""Where a reward model stands, what the law says there, and the null controls of H2.

N sequences in G groups (prompts).
"""

import math

import torch
from torch import Tensor

from precision_lib import bounds, oracle
from precision_lib.forensics.h2 import families, law
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.h2.forwards import RewardForwards
from precision_lib.forensics.h2.rewards import NativeRewards, RewardReplay, StoringLaw
from precision_lib.forensics.probe import MIN_PROMPTS
from precision_lib.forensics.statistics import NothingComparedError
from precision_lib.forensics.verdicts import ExactRewards
from precision_lib.formats import get_format, ulp
from precision_lib.metrics import rewards as grouped
from precision_lib.scoring.micro import AGAIN, FIRST, REBATCHED
from precision_lib.scoring.scorer import EXACT, GOLDEN

#: Formats in which rewards of few exact values must come out without any error.
IMMUNE_FORMATS = ("bf16", "fp16")


def native(golden: Tensor, groups: Tensor, fmt: str) -> NativeRewards:
    """Offset, spread within a prompt, and the step of ``fmt`` of real rewards [N].

    ``offset`` is the median over prompts of the magnitude of the mean, ``within_group_std`` the
    root of the mean variance.
    """
    wide = golden.double()
    members = grouped.stacks(groups)
    means = torch.cat([wide[m].mean(-1) for m in members])
    variances = torch.cat([wide[m].var(-1) for m in members])
    offset, spread = float(means.abs().median()), math.sqrt(float(variances.mean()))
    stored = grouped.group_sums(golden.to(get_format(fmt).dtype), golden, groups)
    return NativeRewards(
        reward_mean=float(wide.mean()),
        offset=offset,
        within_group_std=spread,
        batch_std=float(wide.std()),
        offset_over_spread=offset / spread,
        resolution_over_spread=H2.metrics["reward_resolution_median"].of(stored) / spread,
    )


def storing(golden: Tensor, groups: Tensor, fmt: str) -> StoringLaw:
    """The law on real rewards [N]: RMS advantage error of storing alone, measured and predicted.

    Over the groups of which the law speaks, those whose largest step is at most half their spread;
    errors and advantages as RMS over RMS.

    Returns:
        ``groups`` of ``of``; ``measured`` and ``predicted`` (first order, actual ulps);
        ``shortfall``, the share of the power that the second order takes off; and ``z``, the
        difference of the powers over its standard error from group to group. None where the law
        speaks of too few groups for one.
    """
    number, count = get_format(fmt), int(groups.max()) + 1
    stored = golden.to(number.dtype)
    error2 = torch.from_numpy(grouped.group_sums(stored, golden, groups)["error2"])
    predicted, missing, samples = torch.zeros(3, count, dtype=torch.float64)
    spoken_of = torch.zeros(count, dtype=torch.bool)
    for members in grouped.stacks(groups):
        owner, rewards = groups[members[:, 0]], golden[members].double()
        predicted[owner] = law.predicted_error2(rewards, number)
        missing[owner] = law.second_order(rewards, number)
        samples[owner] = members.shape[1]
        spoken_of[owner] = ulp(rewards, number).max(-1).values <= rewards.std(-1) / 2
    inside = int(spoken_of.sum())
    if inside < MIN_PROMPTS:
        return StoringLaw(inside, count)
    error2, predicted, missing = (x[spoken_of] for x in (error2, predicted, missing))
    difference, n = error2 - predicted, float((samples[spoken_of] - 1).sum())
    scatter = float(difference.std()) * math.sqrt(len(difference))
    return StoringLaw(
        groups=inside,
        of=count,
        measured=math.sqrt(float(error2.sum()) / n),
        predicted=math.sqrt(float(predicted.sum()) / n),
        shortfall=float(missing.sum() / predicted.sum()),
        z=float(difference.sum()) / scatter if scatter else 0.0,
    )


def replay(forwards: RewardForwards, golden: Tensor) -> RewardReplay:
    """The null control of the forward: FP32 again, and FP32 against what was frozen.

    A second FP32 forward must give the same bits. The stored rewards may come from another batch
    shape or device; then they must lie within the noise of FP32: two FP32 results are at most as
    far apart as both are from the exact model, which is twice the largest error seen.
    """
    first, again, rebatched, exact = (
        forwards.scored(fmt, run).scores.double()
        for fmt, run in ((GOLDEN, FIRST), (GOLDEN, AGAIN), (GOLDEN, REBATCHED), (EXACT, FIRST))
    )
    noise = 2 * max(float((x - exact).abs().max()) for x in (first, rebatched))
    distance = float((golden.double() - first).abs().max())
    return RewardReplay(
        n=len(first),
        again_differs=int((first != again).sum()),
        stored_differs=int((golden.double() != first).sum()),
        stored_distance=distance,
        fp32_noise=noise,
        is_null=bool((first == again).all()) and distance <= noise,
    )


def immunity(seed: int) -> ExactRewards:
    """The null control of the hypothesis: rewards of few exact values have no error at all."""
    errors = {
        f"{family.name}, {fmt}": float(families.family_sums(family, fmt, seed)["error2"].sum())
        for family in families.FAMILIES
        if family.immune
        for fmt in IMMUNE_FORMATS
    }
    return ExactRewards(errors, is_null=not any(errors.values()))


def statistics_over_bound(scores: Tensor, groups: Tensor) -> float:
    """Largest error of the normalised advantages over its bound: at most 1 in FP32.

    Advantages of scores [N] as the cells use them, by group and over the batch, against the exact
    ones of the same rounded scores; the bound is that of FP32 statistics.

    Raises:
        NothingComparedError: when no score is finite.
    """
    finite = torch.isfinite(scores)
    if not bool(finite.any()):
        raise NothingComparedError("zero compared advantages: no score is finite")
    rewards, inside = scores[finite], groups[finite]
    by_group = grouped.group_normalised(rewards, inside)
    parts = [(by_group[members], rewards[members]) for members in grouped.stacks(inside)]
    parts.append((grouped.batch_normalised(rewards)[None], rewards[None]))
    return max(_over_bound(got, given) for got, given in parts)


def _over_bound(got: Tensor, rewards: Tensor) -> float:
    """Largest error over its bound of advantages [G, K] of rewards [G, K]; inf for NaN."""
    want = torch.from_numpy(oracle.group_advantages(rewards.double().numpy()))
    limit, error = bounds.group_advantages_bound(rewards), (got.double() - want).abs()
    ratio = torch.where(error == 0, 0.0, error / limit)
    return float(torch.nan_to_num(ratio, nan=torch.inf).max())
