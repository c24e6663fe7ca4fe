"""H4's metrics on errors whose sums are known by construction, adversarial ones among them."""

import math
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings

from precision_lib.forensics.h4.declaration import H4
from precision_lib.forensics.h4.evidence import TOKEN_GROWTH
from precision_lib.forensics.statistics import Metric, estimate, resample
from precision_lib.metrics import drift as h4
from precision_lib.ppo import logprobs

U = 2.0**-53
#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)


def measured(error: Any, metrics: Any = H4.metrics) -> dict[str, Metric]:
    error = np.asarray(error, dtype=np.float64)
    resampling = resample(np.arange(len(error)), seed=0, resamples=400)
    sums = h4.sequence_sums(error)
    return {
        name: estimate(sums, m.function, resampling, n=error.size, unit=m.unit)
        for name, m in metrics.items()
    }


def values(error: Any) -> dict[str, float]:
    return {name: metric.value for name, metric in measured(error).items()}


def standard_error(metric: Metric) -> float:
    """At least the bootstrap's: half the 95 % interval over the normal quantile 1.96."""
    return (metric.high - metric.low) / 2 / 1.96


def exponent_rounding(error: Any) -> float:
    """How far rounding can move a fitted exponent of S_t that follows t^b exactly.

    Cumulative sums have a relative error of at most T u, which moves log S_t^2 by 2 T u; the
    logs and the products of the fit add a few u of the log. The fit weighs each by c / sum c^2.
    """
    length = np.shape(error)[1]
    x = np.log(h4.positions(length))
    c = x - x.mean()
    y = np.abs(np.log(h4.sequence_sums(np.asarray(error))["final2"].sum())) + 2 * x.max()
    terms = 2 * length * U + (len(x) + 8) * U * y
    return float((np.abs(c) * terms).sum() / (c**2).sum())


def test_every_metric_on_two_sequences_of_two_tokens() -> None:
    """S_T = 1 and -1, e^2 = 0.25 + 0.25 + 1 + 0; weights e and 1/e."""
    got = values([[0.5, 0.5], [-1.0, 0.0]])
    want = {
        "accum_err_final": 1.0,
        "accum_err_growth_exponent": 0.0,  # one position only: the end
        "drift_nats_per_1000_tokens": 0.0,
        "log_ratio_rms_error": math.sqrt(1.5 / 4),
        "sequence_ratio_ess": math.cosh(1) ** 2 / math.cosh(2),
        "log_ratio_nonfinite_frac": 0.0,
    }
    assert set(got) == set(want) == set(H4.metrics)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=8 * U, abs=0), name


@SETTINGS
@given(seed=seeds, log2_scale=st.integers(-30, 4))
def test_white_noise_grows_with_the_square_root(seed: int, log2_scale: int) -> None:
    noise = np.random.default_rng(seed).standard_normal((64, 512)) * 2.0**log2_scale
    exponent = measured(noise)["accum_err_growth_exponent"]
    assert abs(exponent.value - 0.5) < SIGMAS * standard_error(exponent)


@SETTINGS
@given(log2_scale=st.integers(-40, 10), length=st.integers(64, 600), sign=st.sampled_from([-1, 1]))
def test_a_constant_bias_grows_linearly(log2_scale: int, length: int, sign: int) -> None:
    bias = np.full((8, length), sign * 1.1 * 2.0**log2_scale)
    got = values(bias)
    assert abs(got["accum_err_growth_exponent"] - 1) <= exponent_rounding(bias)
    assert got["log_ratio_rms_error"] > 0


@SETTINGS
@given(position=st.integers(0, h4.FIRST_POSITION - 1), size=st.floats(-50, 50))
def test_one_early_spike_stays_what_it_is(position: int, size: float) -> None:
    assume(abs(size) > 1e-100)  # its square must not underflow
    spike = np.zeros((8, 300))
    spike[:, position] = size
    got = values(spike)
    assert abs(got["accum_err_growth_exponent"]) <= exponent_rounding(spike)
    assert got["accum_err_final"] == pytest.approx(abs(size), rel=8 * U)


def test_laws_are_told_apart_by_the_interval() -> None:
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((64, 2048)) * 0.03
    exponents = [
        measured(x)["accum_err_growth_exponent"]
        for x in (noise, noise * 1e-3 + 0.01, np.ones((8, 64)))
    ]
    laws = [h4.laws_within(e.low, e.high) for e in exponents]
    assert laws[0] == ["square_root"]
    assert laws[1] == ["linear"]
    assert h4.laws_within(0.4, 1.1) == ["square_root", "linear"]
    assert h4.laws_within(0.1, 0.4) == []


@SETTINGS
@given(seed=seeds, nats_per_1000=st.floats(-20, 20), log2_noise=st.integers(-12, -2))
@example(seed=0, nats_per_1000=-0.4, log2_noise=-5)
def test_a_planted_drift_is_recovered(seed: int, nats_per_1000: float, log2_noise: int) -> None:
    """Within 4.5 standard errors, sd / sqrt(tokens), per 1,000 tokens."""
    noise = np.random.default_rng(seed).standard_normal((16, 400)) * 2.0**log2_noise
    got = values(noise + nats_per_1000 / 1000)["drift_nats_per_1000_tokens"]
    assert abs(got - nats_per_1000) < SIGMAS * 1000 * 2.0**log2_noise / math.sqrt(noise.size)


@SETTINGS
@given(seed=seeds)
def test_the_order_of_the_sequences_changes_nothing(seed: int) -> None:
    """Errors on a grid of 2^-10 have exact sums, so the metrics are equal to the last bit.

    But for the weights exp(S): a sum of N positive numbers is within N u of exact, and the
    effective sample size has four such factors.
    """
    generator = np.random.default_rng(seed)
    error = generator.integers(-2000, 2000, (12, 100)) / 1024
    error[3, 5] = np.nan
    first, other = values(error), values(error[generator.permutation(12)])
    first_ess, other_ess = (x.pop("sequence_ratio_ess") for x in (first, other))
    assert first == other
    assert abs(first_ess - other_ess) <= 2 * 4 * (12 + 4) * U * first_ess


def adversarial_errors(kind: str, seed: int, log2_scale: int) -> Any:
    """[8, 200] errors of a log-ratio, of one kind."""
    generator, shape = np.random.default_rng(seed), (8, 200)
    scale = 2.0**log2_scale
    alternating = np.where(np.arange(200) % 2, -scale, scale) * np.ones((8, 1))
    spike = np.zeros(shape)
    spike[generator.integers(8), generator.integers(200)] = scale
    return {
        "heavy tails": generator.standard_cauchy(shape) * scale,
        "constant": np.full(shape, scale),
        "alternating": alternating,
        "one spike": spike,
        "nothing": np.zeros(shape),
        "one sequence": np.concatenate([np.full((1, 200), scale), np.zeros((7, 200))]),
    }[kind]


KINDS = ("heavy tails", "constant", "alternating", "one spike", "nothing", "one sequence")


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(seed=seeds, log2_scale=st.integers(-60, 30))
@example(seed=0, log2_scale=30)  # weights exp(S) far beyond any format
def test_metrics_hold_their_bounds_on_adversarial_errors(
    kind: str, seed: int, log2_scale: int
) -> None:
    """Finite, with intervals; within what the largest error allows; an ESS between 1/N and 1."""
    error = adversarial_errors(kind, seed, log2_scale)
    got, largest = measured(error), float(np.abs(error).max())
    slack = 1 + 2 * error.size * U
    assert got["accum_err_final"].value <= 200 * largest * slack
    assert got["log_ratio_rms_error"].value <= largest * slack
    assert abs(got["drift_nats_per_1000_tokens"].value) <= 1000 * largest * slack
    assert (1 / 8) / slack <= got["sequence_ratio_ess"].value <= slack
    assert all(math.isfinite(x) for m in got.values() for x in (m.value, m.low, m.high))


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(seed=seeds)
def test_errors_twice_as_large_accumulate_twice_as_much_by_the_same_law(
    kind: str, seed: int
) -> None:
    """A factor of two is exact in every sum; the exponent sees it as a constant in the log."""
    error = adversarial_errors(kind, seed, -4)
    once, twice = values(error), values(2 * error)
    for name in ("accum_err_final", "drift_nats_per_1000_tokens", "log_ratio_rms_error"):
        assert twice[name] == 2 * once[name]
    if kind != "nothing":
        limit = 2 * exponent_rounding(2 * np.abs(error) + 2.0**-40)
        assert abs(twice["accum_err_growth_exponent"] - once["accum_err_growth_exponent"]) <= limit


def test_alternating_errors_cancel() -> None:
    """An even number of them sums to exactly nothing, whatever a single one is."""
    got = values(adversarial_errors("alternating", 0, -4))
    assert got["accum_err_final"] == got["drift_nats_per_1000_tokens"] == 0
    assert got["log_ratio_rms_error"] == 2.0**-4
    assert got["sequence_ratio_ess"] == 1


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_counted_and_enters_nothing_else(bad: float) -> None:
    error = np.random.default_rng(0).standard_normal((8, 100))
    zeroed, broken = error.copy(), error.copy()
    zeroed[2, 7:9] = 0
    broken[2, 7:9] = bad
    want, got = values(zeroed), values(broken)
    assert got.pop("log_ratio_nonfinite_frac") == 2 / 800
    assert want.pop("log_ratio_nonfinite_frac") == 0
    assert got == want
    assert all(math.isfinite(v) for point in h4.by_position(broken) for v in vars(point).values())
    assert math.isfinite(h4.gaussian_ess(broken))
    assert math.isfinite(h4.outside_gspo_band(broken))


def test_an_overflow_of_fp16_logits_is_counted() -> None:
    """Logits beyond 65,504 are infinite in fp16, their log-probs NaN: as many as were planted."""
    logits = torch.randn(8, 100, 16, generator=torch.Generator().manual_seed(0))
    tokens = torch.zeros(8, 100, dtype=torch.int64)
    logits[1, 3:6, 2] = 1e5
    golden, half = (
        logprobs.token_logprobs(logits, tokens, dtype).double()
        for dtype in (torch.float32, torch.float16)
    )
    got = values((half - golden).numpy())
    assert got["log_ratio_nonfinite_frac"] == 3 / 800
    assert 0 < got["log_ratio_rms_error"] < 1


def test_bins_cover_every_token_once_and_positions_end_at_the_last() -> None:
    for length in (1, 2, 15, 16, 17, 40, 255, 1000, 2047):
        edges = h4.bins(length)
        assert edges[0][0] == 0
        assert edges[-1][1] == length
        assert all(a[1] == b[0] for a, b in pairwise(edges))
        assert h4.positions(length)[-1] == length
        assert h4.positions(length) == sorted(set(h4.positions(length)))
    assert h4.bins(100)[-1] == (64, 100)
    assert h4.bins(70)[-1] == (32, 70)


def test_errors_that_grow_with_the_position_are_seen_and_others_are_not() -> None:
    """The detector of a wrong position table: RMS of e ~ t^a, a planted 0 and 0.5."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((16, 2048)) * 0.03
    growing = noise * np.sqrt(np.arange(1, 2049))
    flat, rising = (
        measured(x, TOKEN_GROWTH)["token_error_growth_exponent"] for x in (noise, growing)
    )
    assert flat.low <= 0 <= flat.high
    assert abs(rising.value - 0.5) < SIGMAS * standard_error(rising)
    assert rising.low > 0


def test_an_array_that_is_no_set_of_sequences_is_refused() -> None:
    for error in (np.zeros(5), np.zeros((0, 4)), np.zeros((4, 0))):
        with pytest.raises(ValueError, match=r"errors \[N, T\]"):
            h4.sequence_sums(error)


def test_gspo_clips_by_a_mean_error_beyond_its_band() -> None:
    """exp of the mean error: 3e-4 below, 4e-4 above; one sequence of four on each side is out."""
    means = np.array([-3.1e-4, -2.9e-4, 3.9e-4, 4.1e-4])
    assert h4.outside_gspo_band(means[:, None] * np.ones(100)) == 0.5
    assert h4.outside_gspo_band(np.zeros((3, 100))) == 0


def test_a_stored_sequence_logprob_lies_on_the_grid_of_its_format() -> None:
    """At 512 to 1,024 nats a bf16 number has a step of 4: -601 is stored as -600, -602 as well."""
    golden = np.array([[-300.0, -301.0], [-300.0, -302.0]])
    got = h4.stored_sum_error(golden, golden, "bf16")
    assert got.summed == 0
    assert got.stored == pytest.approx(math.sqrt((1 + 4) / 2), rel=8 * U)
    assert h4.stored_sum_error(golden, golden, "fp32").stored == 0


def test_critical_length_of_a_constant_bias_by_hand() -> None:
    """S_t = t / 100 passes 0.5 at 50 tokens, to the roundings of a log-log interpolation."""
    sums = h4.sequence_sums(np.full((8, 256), 0.01))
    totals = {name: value.sum() for name, value in sums.items()}
    assert float(h4.critical_length(totals, 0.5)) == pytest.approx(50, rel=512 * U)
    assert float(h4.critical_length(totals, 100.0)) == 256, "never: the end"
    assert float(h4.critical_length(totals, 1e-9)) == h4.positions(256)[0], "from the start"


def test_derived_critical_length_solves_its_equation() -> None:
    kl, limit = 3.7e-4, math.sqrt(0.1)
    length = h4.expected_critical_length(kl, limit)
    x = kl * length
    assert math.sqrt(x**2 + 2 * x) == pytest.approx(limit, rel=64 * U)
    assert round(length) == 132
