"""Adversarial reward distributions: what a reward format costs before any model is asked.

The hazard. One reward model has one offset and one spread; a verdict at that point says nothing
about the next model, or about the same one after its scores have drifted. So every reward format
is also put to distributions that are known to be hard (a large offset, heavy tails) or known to be
harmless (two values, which must come out with an error of exactly 0), each with the error that
``law.py`` derives, and the offset at which the format begins to harm is solved for.

Where the offset is beyond the law, what is left depends on where it lies between two values of the
format: 3,000 is half way between two bf16 values, so that one bit of each reward survives, while
around 10,000 nothing does.

G groups of K samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics.causal import Paired, Sums
from precision_lib.forensics.h2 import law
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.h2.rewards import (
    CriticalOffset,
    CriticalOffsets,
    RewardFamily,
    SyntheticRewards,
)
from precision_lib.forensics.statistics import (
    Metric,
    NothingComparedError,
    Resampling,
    resample,
)
from precision_lib.formats import FORMATS, get_format, ulp
from precision_lib.metrics import rewards as grouped
from precision_lib.metrics.measure import Array
from precision_lib.ppo import advantages

GROUPS, SAMPLES = 1024, 8
DAMAGE, LIMIT = H2.decision.metric, H2.decision.limit
OFFSETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
#: Spreads in one octave: the phase between the spread and the steps, which are powers of two.
#: Not 1: for 8 samples a step of exactly one spread has exactly the limit's error.
SPREADS = (1.1, 1.25, 1.5, 1.75)
#: From a generator to rewards [G, K] float64.
Draw = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True)
class Family:
    """One distribution of rewards.

    Attributes:
        name: what it is, for a reader.
        draw: rewards [GROUPS, SAMPLES] float64.
        smooth: spread over many values, so that the law speaks of it while steps are small.
        immune: every 16-bit format must have an error of exactly 0.
        offset: of normal rewards with a spread of 1; None for another distribution.
    """

    name: str
    draw: Draw
    smooth: bool = False
    immune: bool = False
    offset: float | None = None


def _normal(offset: float) -> Draw:
    return lambda g: offset + torch.randn(GROUPS, SAMPLES, generator=g, dtype=torch.float64)


def _student(degrees: int) -> Draw:
    """Normal over the root of a chi-square per degree: infinite variance with 2 degrees."""

    def draw(g: torch.Generator) -> Tensor:
        normal = torch.randn(degrees + 1, GROUPS, SAMPLES, generator=g, dtype=torch.float64)
        return normal[0] / normal[1:].square().mean(0).sqrt()

    return draw


def _levels(count: int, step: float, start: float) -> Draw:
    """One of ``count`` equally likely levels from ``start`` on."""

    def draw(g: torch.Generator) -> Tensor:
        return start + step * torch.randint(count, (GROUPS, SAMPLES), generator=g).double()

    return draw


FAMILIES: tuple[Family, ...] = (
    *(Family(f"normal, offset {c:g}", _normal(c), smooth=True, offset=c) for c in OFFSETS),
    Family("Student t, 3 degrees", _student(3), smooth=True),
    Family("Student t, 2 degrees", _student(2), smooth=True),
    Family("Likert 1 to 5", _levels(5, 1, 1), immune=True),
    Family("Likert 1 to 5 in halves", _levels(9, 0.5, 1), immune=True),
    Family("binary 0 and 1", _levels(2, 1, 0), immune=True),
    Family("binary -1 and +1", _levels(2, 2, -1), immune=True),
    Family("binary, offset 100.3", _levels(2, 1, 100.3)),
    Family("binary, offset 1000.3", _levels(2, 1, 1000.3)),
)


def rewards_of(family: Family, fmt: str, seed: int) -> Tensor:
    """Golden rewards [G, K] to be stored in ``fmt``: FP32 values, float64 ones for FP32 itself."""
    generator = torch.Generator().manual_seed(seed)
    drawn = family.draw(generator)
    return drawn if fmt == "fp32" else drawn.float()


def flat(family: Family, fmt: str, seed: int) -> tuple[Tensor, Tensor]:
    """(rewards [N], groups [N]) of :func:`rewards_of`."""
    golden = rewards_of(family, fmt, seed)
    return golden.flatten(), torch.arange(len(golden)).repeat_interleave(golden.shape[1])


def family_sums(family: Family, fmt: str, seed: int) -> dict[str, Array]:
    """Sums of every metric per group, for the rewards of a family stored in ``fmt``."""
    golden, groups = flat(family, fmt, seed)
    return grouped.group_sums(golden.to(get_format(fmt).dtype), golden, groups)


def measured(paired: Paired, sums: Sums) -> dict[str, Metric]:
    """Every metric with its interval and with the number of elements that it compared.

    Where no score is finite, the share of those that are not is all there is to say.

    Raises:
        NothingComparedError: when golden tells no pair of finite scores apart.
    """
    if not sums["sequences"].any():
        return {H2.nonfinite: paired.estimate(sums, H2.nonfinite)}
    if not sums["pairs"].any():
        raise NothingComparedError(
            "zero compared pairs: in every group all golden rewards are equal, so no ranking can "
            "be lost; freeze several different answers per prompt"
        )
    return paired.estimates(sums)


def family_row(family: Family, fmt: str, seed: int, resampling: Resampling) -> RewardFamily:
    """Every metric of a family in ``fmt``, the damage with its interval and its prediction."""
    sums = family_sums(family, fmt, seed)
    metrics = measured(Paired(H2.metrics, resampling, counted="sequences"), sums)
    golden = rewards_of(family, fmt, seed)
    step_over_spread = predicted = None
    if family.smooth:
        spread = golden.double().std(-1)
        steps = ulp(golden, FORMATS[fmt]).square().mean(-1).sqrt()
        step_over_spread = float((steps / spread).median())
        signal2 = golden.numel() - len(golden)  # a group that does not tie has K - 1
        power = law.predicted_error2(golden, FORMATS[fmt]).sum() / signal2
        predicted = float(power.sqrt())
    return RewardFamily(
        rewards=family.name,
        **{name: metric.value for name, metric in metrics.items()},
        advantage_rms_error_interval=(metrics[DAMAGE].low, metrics[DAMAGE].high),
        offset_over_spread=family.offset,
        step_over_spread=step_over_spread,
        advantage_rms_error_predicted=predicted,
    )


def critical_offsets(fmt: str, seed: int, resampling: Resampling) -> CriticalOffsets:
    """Offset over spread from which on storing in ``fmt`` is above the decision threshold."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(GROUPS, SAMPLES, generator=generator, dtype=torch.float64)
    number = FORMATS[fmt]
    lowest = LIMIT / law.predicted_rms(1.0, SAMPLES) * 2.0 ** (number.significand_bits - 1)
    return CriticalOffsets(
        limit=LIMIT,
        predicted_range=(lowest, 2 * lowest),
        by_spread=tuple(
            CriticalOffset(
                sigma,
                law.predicted_critical_offset(LIMIT, sigma, number, SAMPLES),
                law.measured_critical_offset(normal, LIMIT, sigma, number, resampling),
            )
            for sigma in SPREADS
        ),
    )


def statistics_example(fmt: str = "bf16") -> dict[str, tuple[float, ...]]:
    """OpenRLHF #1334: one group whose statistics are taken in the rewards' own format.

    The rewards are exact in bf16. Their mean, 1.00195, is not: it rounds to 1, so that three of
    four advantages vanish. torch's ``mean`` and ``std`` each round a wide result once: std rounds
    to 0.00390625 and the last advantage is 2. With every operation in bf16 the deviation is taken
    about the rounded mean as well, and it is sqrt(3).
    """
    rewards = torch.tensor([[1.0, 1.0, 1.0, 1.0078125]])
    own = rewards.to(get_format(fmt).dtype)
    as_written = (own - own.mean(-1, keepdim=True)) / own.std(-1, keepdim=True)
    rows = {
        "rewards": rewards,
        "advantages_with_fp32_statistics": advantages.group_advantages(own),
        f"advantages_with_{fmt}_statistics": as_written,
        f"advantages_with_every_operation_in_{fmt}": advantages.group_advantages(own, own.dtype),
    }
    return {name: tuple(row[0].tolist()) for name, row in rows.items()}


def family_evidence(fmt: str, seed: int) -> SyntheticRewards:
    """All families for one reward format, its critical offset, and the named example.

    The critical offset is None for fp64, against which nothing wider is held here.
    """
    resampling = resample(np.arange(GROUPS), seed)
    return SyntheticRewards(
        groups=GROUPS,
        samples_per_group=SAMPLES,
        families=tuple(family_row(family, fmt, seed, resampling) for family in FAMILIES),
        critical_offset_over_spread=(
            None if fmt == "fp64" else critical_offsets(fmt, seed, resampling)
        ),
        openrlhf_1334_group_statistics_in_bf16=statistics_example(),
    )
