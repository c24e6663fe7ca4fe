"""The law of stored rewards against measurements, at many offsets, shapes and seeds.

Expected before anything was measured: an RMS error of h / (sqrt(12) sigma) * sqrt(1.05) for normal
rewards in groups of 8; the limit of sqrt(0.1) passed at h = 1.069 sigma, that is from an offset
of 137 to 274 spreads on in bf16; exactly 0 for two values; sqrt(7/8) where everything ties.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from precision_lib.faults import plant
from precision_lib.forensics.h2 import families, law, operating_point
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.statistics import resample
from precision_lib.formats import FORMATS, ulp
from precision_lib.metrics import rewards as h2
from precision_lib.ppo import advantages

#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5
NARROW = ("bf16", "fp16")
U32 = FORMATS["fp32"].unit_roundoff


def normal(groups: int, samples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(groups, samples, generator=generator, dtype=torch.float64)


def check_law(got: Tensor, rewards: Tensor, fmt: str) -> None:
    """Measured powers [G] against the law within standard errors, and its second order."""
    predicted = law.predicted_error2(rewards, FORMATS[fmt])
    missing = law.second_order(rewards, FORMATS[fmt]).sum()
    difference = got - predicted
    error = difference.std() * math.sqrt(len(difference))
    assert len(difference) > 0
    assert error > 0
    # The second order is itself an expansion: its own error is of the order of its square.
    second = missing + missing**2 / predicted.sum()
    low, high = -SIGMAS * error - second, SIGMAS * error
    assert low <= difference.sum() <= high, (
        f"power {got.sum():.4g}, law {predicted.sum():.4g}, difference must lie in "
        f"[{low:.3g}, {high:.3g}]"
    )


# The law


def test_growth_of_a_group_of_eight() -> None:
    """6 / 5 and 2 / 1, by hand; for many samples it goes to 1."""
    assert law.small_sample_growth(8) == math.sqrt(1.2)
    assert law.small_sample_growth(4) == math.sqrt(2)
    assert abs(law.small_sample_growth(10**6) - 1) < 1e-6
    with pytest.raises(ValueError, match="K = 3: the law needs groups of at least 4"):
        law.small_sample_growth(3)


def test_prediction_of_one_group_by_hand() -> None:
    """Rewards 100 + (-3, -1, 1, 3): sum of squares 20, s^2 = 20/3, bf16 step 1/2.

    a_i^2 / 3 = 9/20, 1/20, so that P_ii = 3/4 - 9/20 = 0.3 and 0.7, twice each, 2 = K - 2 in all:
    2 * (1/4) / 12 / (20/3) = 1/160.
    """
    rewards = torch.tensor([[97.0, 99.0, 101.0, 103.0]])
    got = float(law.predicted_error2(rewards, FORMATS["bf16"]))
    assert abs(got - 1 / 160) <= 16 * 2.0**-53


def test_two_samples_have_no_error_to_predict() -> None:
    """K = 2: advantages are +-sqrt(1/2) whatever the rewards are, K - 2 = 0 directions are left."""
    got = law.predicted_error2(torch.tensor([[1.0, 3.3]]), FORMATS["bf16"])
    assert abs(float(got)) <= 2.0**-50


def test_equal_rewards_have_no_predicted_error() -> None:
    assert not law.predicted_error2(torch.full((2, 4), 0.1), FORMATS["bf16"]).any()


@pytest.mark.parametrize("samples", [8, 16])
def test_normal_rewards_follow_the_closed_form(samples: int) -> None:
    """Actual steps and actual spreads, averaged over groups, are the formula with one step."""
    rewards = 80 + normal(4096, samples, 3) / 2  # all in the binade of 64: h = 1/2 = sigma
    assert (ulp(rewards, FORMATS["bf16"]) == 0.5).all()
    power = law.predicted_error2(rewards, FORMATS["bf16"]) / (samples - 1)
    want = law.predicted_rms(1.0, samples) ** 2
    z = float((power.mean() - want) / (power.std() / math.sqrt(len(power))))
    assert abs(z) < SIGMAS, f"z = {z:.1f}"


@pytest.mark.parametrize("fmt", NARROW)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "family",
    [
        f
        for f in families.FAMILIES
        if f.smooth and (f.offset is None or f.offset <= 64)  # h <= sigma / 2 in bf16
    ],
    ids=lambda f: f.name,
)
def test_measured_errors_follow_the_law(family: families.Family, fmt: str, seed: int) -> None:
    """Group-normalised, through the metrics of H2 themselves."""
    rewards = families.rewards_of(family, fmt, seed)
    got = torch.from_numpy(families.family_sums(family, fmt, seed)["error2"])
    check_law(got, rewards, fmt)


@pytest.mark.parametrize("fmt", NARROW)
@pytest.mark.parametrize("offset", [1.0, 10.0, 60.0])
def test_batch_normalised_errors_follow_the_law_of_one_large_group(fmt: str, offset: float) -> None:
    """K = N: each of 64 batches of 128 rewards is one group."""
    rewards = (offset + normal(64, 128, 5)).float()
    got = torch.stack(
        [
            (h2.batch_normalised(r.to(FORMATS[fmt].dtype)) - h2.batch_normalised(r)).square().sum()
            for r in rewards
        ]
    )
    check_law(got.double(), rewards, fmt)


@given(
    seed=st.integers(0, 2**32 - 1),
    offset=st.floats(-64, 64),
    samples=st.sampled_from([8, 12, 16]),
    exponent=st.integers(-6, 6),
    fmt=st.sampled_from(NARROW),
)
def test_the_law_holds_for_any_offset_and_spread(
    seed: int, offset: float, samples: int, exponent: int, fmt: str
) -> None:
    """Steps up to half the spread; 8 samples or more, so that the variance of 1/s^2 exists."""
    rewards = ((offset + normal(512, samples, seed)) * 2.0**exponent).float()
    check_law(law.stored_error2(rewards, FORMATS[fmt]), rewards, fmt)


def test_the_law_notices_statistics_in_bf16() -> None:
    """The clean case passes above; group statistics in the rewards' format must not."""
    rewards = (10 + normal(1024, 8, 0)).float()
    stored = rewards.bfloat16()
    broken = advantages.group_advantages(stored, torch.bfloat16).double()
    got = (broken - advantages.group_advantages(rewards.double())).square().sum(-1)
    with pytest.raises(AssertionError, match="law"):
        check_law(got, rewards, "bf16")


# Beyond the law


@pytest.mark.parametrize("fmt", NARROW)
def test_where_everything_ties_the_error_is_that_of_the_advantages(fmt: str) -> None:
    """Offset 10,000: bf16 steps of 64 and fp16 steps of 8 on a spread of 1."""
    family = next(f for f in families.FAMILIES if f.offset == 1e4)
    sums = families.family_sums(family, fmt, 0)
    assert H2.metrics["reward_tie_frac"].of(sums) == 1
    rounding = U32 * 7 / math.sqrt(8)  # of golden advantages, at most 7 / sqrt(8), to FP32
    assert abs(H2.metrics["advantage_rms_error"].of(sums) - 1) <= rounding


def test_half_way_between_two_values_one_bit_survives() -> None:
    """3,000 between 2,992 and 3,008: a reward keeps its side and nothing else: half the pairs."""
    family = next(f for f in families.FAMILIES if f.offset == 3000)
    sums = families.family_sums(family, "bf16", 0)
    error = 0.5 / math.sqrt(sums["pairs"].sum())  # of independent pairs; those here share samples
    assert abs(H2.metrics["reward_tie_frac"].of(sums) - 0.5) < SIGMAS * math.sqrt(7) * error
    assert H2.metrics["advantage_rms_error"].of(sums) < 1


# The critical offset


@pytest.mark.parametrize("sigma", families.SPREADS)
def test_predicted_critical_offset_in_bf16_by_hand(sigma: float) -> None:
    """h > sigma: h = 2 for all four spreads, from 256 on."""
    limit = math.sqrt(0.1)
    step = limit / law.predicted_rms(1.0, 8)
    assert abs(step - 1) <= 8 * 2.0**-53
    assert 1 < step * sigma < 2
    got = law.predicted_critical_offset(limit, sigma, FORMATS["bf16"], 8)
    assert got == 256 / sigma


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp32"])
def test_measured_critical_offset_is_where_the_law_puts_it(fmt: str) -> None:
    """Within 4 spreads of the power of two: each reward changes its step where it passes it."""
    found = families.critical_offsets(fmt, 1, resample(np.arange(families.GROUPS), 1))
    low, high = found.predicted_range
    assert high == 2 * low
    assert len(found.by_spread) == len(families.SPREADS)
    for row in found.by_spread:
        assert low <= row.predicted <= high
        measured = row.measured
        assert measured.low <= measured.value <= measured.high
        assert abs(measured.value - row.predicted) <= 4
        assert measured.high - measured.low <= 4


def test_a_limit_that_is_never_passed_is_found_at_the_end_of_the_search() -> None:
    """RMS errors above 2 do not exist; the interval is the end point itself."""
    draws = normal(64, 8, 0)
    found = law.measured_critical_offset(
        draws, 2.5, 1.0, FORMATS["bf16"], resample(np.arange(64), 0)
    )
    end = law.predicted_critical_offset(2.5, 1.0, FORMATS["bf16"], 8) * 4
    assert found.value == found.low == found.high == end


# Immune rewards, and the named example


@pytest.mark.parametrize("fmt", NARROW)
@pytest.mark.parametrize("family", [f for f in families.FAMILIES if f.immune], ids=lambda f: f.name)
def test_immune_rewards_have_an_error_of_exactly_zero(family: families.Family, fmt: str) -> None:
    sums = families.family_sums(family, fmt, 0)
    assert sums["sequences"].sum() == families.GROUPS * families.SAMPLES
    for name in ("error2", "batch_error2", "tied", "flipped"):
        assert not sums[name].any(), name


@given(
    low=st.floats(-1e4, 1e4, width=32),
    gap=st.floats(2.0**-10, 1e4, width=32),
    seed=st.integers(0, 2**32 - 1),
    fmt=st.sampled_from(NARROW),
)
def test_two_values_lose_all_or_nothing(low: float, gap: float, seed: int, fmt: str) -> None:
    """Advantages of two values depend on the counts alone, until the two become one."""
    pair = torch.tensor([low, low + gap])
    generator = torch.Generator().manual_seed(seed)
    golden = pair[torch.randint(2, (16, 8), generator=generator)]
    if pair[0] == pair[1]:
        return
    stored = golden.to(FORMATS[fmt].dtype)
    got, want = (advantages.group_advantages(r).double() for r in (stored, golden))
    if len(torch.unique(pair.to(FORMATS[fmt].dtype))) == 2:
        assert float((got - want).abs().max()) <= 2 * U32 * 7 / math.sqrt(8)
    else:
        assert not got.any()


def test_openrlhf_1334_by_hand() -> None:
    """Mean 1 + 2^-9, centred (-1, -1, -1, 3) 2^-9, variance 12 2^-18 / 3 = (2 2^-9)^2.

    In bf16 the mean rounds to 1 (its step there is 2^-7) and the last reward keeps a centred
    2^-7 alone. Over torch's std, 2^-8, that is 2; over a deviation about the rounded mean,
    2^-7 / sqrt(3), it is sqrt(3) within the rounding of the three operations to 8 bits.
    """
    found = families.statistics_example()
    assert list(found["rewards"]) == [1, 1, 1, 1.0078125]
    assert list(found["advantages_with_fp32_statistics"]) == [-0.5, -0.5, -0.5, 1.5]
    assert list(found["advantages_with_bf16_statistics"]) == [0, 0, 0, 2]
    every = found["advantages_with_every_operation_in_bf16"]
    assert every[:3] == (0, 0, 0)
    assert abs(every[3] / math.sqrt(3) - 1) <= 3 * FORMATS["bf16"].unit_roundoff


def test_group_statistics_in_bf16_break_the_immunity_of_binary_rewards() -> None:
    """A mean of 3/8 is exact in bf16, one of 3/7 is not: 0 and 1 are no longer without error."""
    assert operating_point.immunity(0).is_null
    with plant("group_statistics_in_rewards_dtype"):
        assert not operating_point.immunity(0).is_null


# The evidence


@pytest.mark.parametrize("fmt", ["bf16", "fp64"])
def test_evidence_holds_every_family_with_its_prediction(fmt: str) -> None:
    found = families.family_evidence(fmt, 0)
    assert [row.rewards for row in found.families] == [f.name for f in families.FAMILIES]
    for row, family in zip(found.families, families.FAMILIES, strict=True):
        assert set(H2.metrics) <= vars(row).keys()
        assert (row.advantage_rms_error_predicted is not None) == family.smooth
        low, high = row.advantage_rms_error_interval
        assert low <= row.advantage_rms_error <= high
    assert (found.critical_offset_over_spread is None) == (fmt == "fp64")
    assert found.groups * found.samples_per_group == 8192
