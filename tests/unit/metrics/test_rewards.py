"""H2's metrics on rewards that can be checked by hand, and properties that no rewards may break."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from precision_lib.forensics.causal import Paired
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.h2.families import measured
from precision_lib.forensics.statistics import NothingComparedError, resample
from precision_lib.formats import FORMATS, get_format
from precision_lib.metrics import rewards as h2

NARROW = ("bf16", "fp16")
#: What FP32 rounding makes of an advantage of at most (K - 1) / sqrt(K), K <= 16.
ROUNDING = FORMATS["fp32"].unit_roundoff * 15 / 4


def metrics(scores: Tensor, golden: Tensor, groups: Tensor) -> dict[str, float]:
    sums = h2.group_sums(scores, golden, groups)
    return {name: H2.metrics[name].of(sums) for name in H2.metrics if has_levels(sums, name)}


def has_levels(sums: dict[str, Any], name: str) -> bool:
    return name != "reward_resolution_median" or any(key.startswith("level:") for key in sums)


def numbered(sizes: list[int]) -> Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def test_every_metric_on_two_groups() -> None:
    """Golden [0, 1, 2, 3] and [0, 0, 1, 1]; scores [0, 2, 2, 1] and the same.

    Group 1: golden advantages (-1.5, -.5, .5, 1.5) / sqrt(5/3). Scores have the mean 5/4, centred
    (-5, 3, 3, -1) / 4, sum of squares 44/16, variance 11/12. Pairs: (0,1) (0,2) (0,3) agree,
    (1,2) ties, (1,3) (2,3) disagree: agreement 1 of 6. The signs of samples 1 and 3 flip.
    Group 2: no error, four pairs differ and agree. The batch is whitened as one group of 8.
    """
    golden = torch.tensor([0.0, 1, 2, 3, 0, 0, 1, 1])
    scores = torch.tensor([0.0, 2, 2, 1, 0, 0, 1, 1], dtype=torch.bfloat16)
    got = metrics(scores, golden, numbered([4, 4]))

    def normalised(x: list[float]) -> np.ndarray:
        centred = np.array(x) - np.mean(x)
        result: np.ndarray = centred / np.sqrt((centred**2).sum() / (len(x) - 1))
        return result

    error = np.array([-1.25, 0.75, 0.75, -0.25]) / math.sqrt(11 / 12)
    error = error - np.array([-1.5, -0.5, 0.5, 1.5]) / math.sqrt(5 / 3)
    batch = normalised(scores.double().tolist()) - normalised(golden.double().tolist())
    want = {
        "reward_tie_frac": 1 / 10,
        "reward_kendall_tau": (1 + 4) / 10,
        # Two groups of 4: sum(a^2) = 3 each; the batch of 8: 7.
        "advantage_rms_error": math.sqrt((error**2).sum() / 6),
        "advantage_sign_flip_frac": 2 / 8,
        "batch_advantage_rms_error": math.sqrt((batch**2).sum() / 7),
        "reward_nonfinite_frac": 0.0,
        # bf16 steps: 2^-133 at 0 (3 times), 2^-7 at 1 (3 times), 2^-6 at 2: the fourth of eight.
        "reward_resolution_median": 2.0**-7,
    }
    assert set(got) == set(want)
    for name, value in want.items():
        assert abs(got[name] - value) <= 2 * ROUNDING, name


def test_all_metrics_of_equal_scores() -> None:
    """Everything ties: no advantage is left, so the error is the golden advantages themselves."""
    golden = torch.tensor([0.0, 1, 2, 4])
    got = metrics(torch.zeros(4, dtype=torch.bfloat16), golden, numbered([4]))
    assert got["reward_tie_frac"] == 1
    assert got["reward_kendall_tau"] == 0
    assert got["advantage_sign_flip_frac"] == 0
    assert abs(got["advantage_rms_error"] - 1) <= ROUNDING


def test_groups_without_a_signal_do_not_dilute_the_damage() -> None:
    """20 groups that say something, their rewards replaced by noise, among 492 that tie."""
    generator = torch.Generator().manual_seed(0)
    golden = torch.zeros(512, 8)
    golden[:20] = torch.randn(20, 8, generator=generator)
    scores = golden.clone()
    scores[:20] = torch.randn(20, 8, generator=generator)
    got = metrics(scores.flatten(), golden.flatten(), numbered([8] * 512))
    # Two independent directions of the same length are sqrt(2) of it apart, give or take.
    assert got["advantage_rms_error"] > 1


def test_an_opposite_ranking_is_minus_one_and_flips_every_sign() -> None:
    golden = torch.tensor([0.0, 1, 2, 3])
    got = metrics(-golden, golden, numbered([4]))
    assert got["reward_kendall_tau"] == -1
    assert got["advantage_sign_flip_frac"] == 1
    assert abs(got["advantage_rms_error"] - 2) <= 2 * ROUNDING


def test_infinite_scores_are_counted_and_enter_nothing_else() -> None:
    """The rest of the group is measured as if the overflowed answer had not been sampled."""
    golden = torch.tensor([0.0, 1, 2, 1e6, 3, 0, 1, 5])
    scores = golden.to(torch.float16)
    scores[4:6] = torch.tensor([0.5, 3.0])
    finite = torch.isfinite(scores)
    assert (~finite).tolist() == [i == 3 for i in range(8)]
    groups = numbered([4, 4])
    got = metrics(scores, golden, groups)
    want = metrics(scores[finite], golden[finite], groups[finite])
    assert got.pop("reward_nonfinite_frac") == 1 / 8
    assert want.pop("reward_nonfinite_frac") == 0
    assert got == want


def test_where_nothing_is_finite_only_that_is_said() -> None:
    golden = torch.arange(16.0)
    sums = h2.group_sums(torch.full((16,), torch.nan), golden, numbered([4] * 4))
    got = measured(Paired(H2.metrics, resample(np.arange(4), 0), "sequences"), sums)
    assert set(got) == {"reward_nonfinite_frac"}
    assert got["reward_nonfinite_frac"].value == 1
    assert got["reward_nonfinite_frac"].n == 16


def test_elements_compared_are_pairs_sequences_and_scores() -> None:
    golden = torch.tensor([0.0, 0, 1, 2] * 4)
    scores = golden.clone()
    scores[0] = torch.inf
    sums = h2.group_sums(scores, golden, numbered([4] * 4))
    got = measured(Paired(H2.metrics, resample(np.arange(4), 0), "sequences"), sums)
    assert got["reward_tie_frac"].n == got["reward_kendall_tau"].n == 3 + 3 * 5
    assert got["advantage_rms_error"].n == 15
    assert got["reward_nonfinite_frac"].n == 16


def test_equal_golden_rewards_compare_nothing() -> None:
    sums = h2.group_sums(torch.ones(8), torch.ones(8), numbered([4, 4]))
    paired = Paired(H2.metrics, resample(np.arange(2), 0), "sequences")
    with pytest.raises(NothingComparedError, match="zero compared pairs"):
        measured(paired, sums)


def test_inputs_that_cannot_be_measured_are_refused() -> None:
    groups = numbered([4])
    with pytest.raises(ValueError, match=r"must be \[N\] each"):
        h2.group_sums(torch.ones(3), torch.ones(4), groups)
    with pytest.raises(ValueError, match="golden rewards hold inf or NaN"):
        h2.group_sums(torch.ones(4), torch.tensor([1, 2, 3, torch.inf]), groups)
    with pytest.raises(ValueError, match="1 of 2 prompts have one sequence only"):
        h2.numbered(torch.tensor([7, 7, 9]))


def test_prompts_are_numbered_whatever_their_ids() -> None:
    assert h2.numbered(torch.tensor([90, 7, 90, 7])).tolist() == [1, 0, 1, 0]


# Adversarial rewards, drawn

SIZES = st.lists(st.integers(2, 16), min_size=1, max_size=6)


@st.composite
def rewards(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(golden [N] FP32, groups [N]): offsets, scales, heavy tails, ties and constants per group."""
    sizes = draw(SIZES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    parts = []
    for size in sizes:
        shape = draw(st.sampled_from(["normal", "cauchy", "levels", "equal"]))
        normal = torch.randn(2, size, generator=generator)
        drawn = {
            "normal": normal[0],
            "cauchy": normal[0] / normal[1].abs().clamp(min=1e-3),
            "levels": torch.randint(3, (size,), generator=generator).float(),
            "equal": torch.full((size,), 0.1),
        }[shape]
        offset, scale = draw(st.sampled_from([0.0, 1.0, -3e2, 1e4])), draw(st.integers(-12, 12))
        parts.append(offset + drawn * 2.0**scale)
    return torch.cat(parts), numbered(sizes)


@given(rewards(), st.sampled_from(NARROW))
def test_metrics_stay_in_their_range(drawn: tuple[Tensor, Tensor], fmt: str) -> None:
    """RMS of a difference of two vectors on the sphere sum(a^2) = K - 1: at most 2."""
    golden, groups = drawn
    got = metrics(golden.to(get_format(fmt).dtype), golden, groups)
    for name in ("reward_tie_frac", "advantage_sign_flip_frac", "reward_nonfinite_frac"):
        assert 0 <= got[name] <= 1, name
    assert -1 <= got["reward_kendall_tau"] <= 1
    for name in ("advantage_rms_error", "batch_advantage_rms_error"):
        assert 0 <= got[name] <= 2, name
    # Rounding is monotone: it may tie a pair and never turns it around.
    pairs = h2.group_sums(golden.to(get_format(fmt).dtype), golden, groups)["pairs"].sum()
    if pairs:
        assert abs(got["reward_kendall_tau"] - (1 - got["reward_tie_frac"])) * pairs < 0.5


@given(rewards(), st.sampled_from(NARROW))
def test_rewards_that_the_format_holds_have_no_error(
    drawn: tuple[Tensor, Tensor], fmt: str
) -> None:
    """Golden rewards that lie on the grid of the format: exactly zero, in every metric."""
    dtype = get_format(fmt).dtype
    golden, groups = drawn[0].to(dtype).float(), drawn[1]
    finite = torch.isfinite(golden)
    golden = torch.where(finite, golden, 0)
    got = metrics(golden.to(dtype), golden, groups)
    for name in ("reward_tie_frac", "advantage_rms_error", "batch_advantage_rms_error"):
        assert got[name] == 0, name
    assert got["advantage_sign_flip_frac"] == 0


@given(rewards(), st.sampled_from(NARROW), st.randoms(use_true_random=False))
def test_order_does_not_matter(drawn: tuple[Tensor, Tensor], fmt: str, random: Any) -> None:
    """Sequences in any order, groups under any number: counts are equal, errors within rounding.

    Each advantage is rounded to FP32 once, from a float64 result that depends on the order in its
    last bits: RMS errors move by at most one rounding of each of the two advantages, twice.
    """
    golden, groups = drawn
    scores = golden.to(get_format(fmt).dtype)
    order = list(range(len(golden)))
    random.shuffle(order)
    names = list(range(int(groups.max()) + 1))
    random.shuffle(names)
    got = metrics(scores[order], golden[order], torch.tensor(names)[groups][order])
    want = metrics(scores, golden, groups)
    assert set(got) == set(want)
    for name, value in want.items():
        rounding = 4 * ROUNDING * math.sqrt(len(golden)) if name.endswith("error") else 0
        assert abs(got[name] - value) <= rounding, name


@given(rewards(), st.integers(-8, 8))
def test_a_power_of_two_in_the_scale_changes_nothing(
    drawn: tuple[Tensor, Tensor], exponent: int
) -> None:
    """bf16 has no overflow or underflow here, so everything but the step scales away."""
    golden, groups = drawn
    want = metrics(golden.bfloat16(), golden, groups)
    scaled = golden * 2.0**exponent
    got = metrics(scaled.bfloat16(), scaled, groups)
    zero_steps = bool((golden == 0).any())  # the step at 0 is the smallest subnormal, always
    if not zero_steps:
        assert got["reward_resolution_median"] == want["reward_resolution_median"] * 2.0**exponent
    for name in set(want) - {"reward_resolution_median"}:
        assert got[name] == want[name], name
