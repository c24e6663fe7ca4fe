"""Bootstrap intervals cover what they should, and verdicts turn exactly at their limits."""

import numpy as np
import pytest
from numpy.typing import NDArray

from precision_lib.forensics.causal import PURE, Paired, Rebatched, why_inconclusive
from precision_lib.forensics.evidence import Evidence
from precision_lib.forensics.hypotheses import DECISIONS, HYPOTHESES
from precision_lib.forensics.statistics import (
    CONFIDENCE,
    Metric,
    NothingComparedError,
    contrast,
    estimate,
    resample,
    small_sample_factor,
)
from precision_lib.forensics.study import cell_of
from precision_lib.forensics.verdicts import (
    HEALTHY,
    IMPAIRED,
    INCONCLUSIVE,
    PARTLY,
    REFUTED,
    SUPPORTED,
    cell_verdict,
    hypothesis_verdict,
)
from precision_lib.metrics.measure import Array, Measure, Totals

LENGTHS = 4


def mean(totals: Totals) -> Array:
    return totals["x"] / totals["n"]


def sample(seed: int, prompts: int = 12) -> dict[str, Array]:
    """Sums of 10 tokens per sequence, LENGTHS sequences per prompt that share its level. Mean 1."""
    generator = np.random.default_rng(seed)
    level = np.tile(generator.normal(1.0, 0.3, prompts), LENGTHS)
    own = generator.normal(0.0, 1.0, prompts * LENGTHS)
    return {"x": 10 * (level + own), "n": np.full(prompts * LENGTHS, 10.0)}


def prompts_of(count: int) -> NDArray[np.int64]:
    return np.tile(np.arange(count), LENGTHS)


@pytest.mark.parametrize("prompts", [8, 12])
def test_interval_covers_the_truth_as_often_as_it_says(prompts: int) -> None:
    """At the default and at the smallest number of prompts, with an effect of the prompt.

    600 data sets: within 4.5 binomial standard errors of 95 %.
    """
    trials, covered = 600, 0
    for seed in range(trials):
        drawn = resample(prompts_of(prompts), seed, resamples=400)
        m = estimate(sample(seed, prompts), mean, drawn, n=10 * prompts * LENGTHS, unit="")
        covered += m.low <= 1.0 <= m.high
    error = (CONFIDENCE * (1 - CONFIDENCE) / trials) ** 0.5
    assert abs(covered / trials - CONFIDENCE) < 4.5 * error, covered / trials


def test_sequences_of_one_prompt_come_and_go_together() -> None:
    drawn = resample(prompts_of(5), 0, resamples=50)
    assert drawn.clusters == 5
    assert (drawn.weights.sum(1) == 5 * LENGTHS).all()
    blocks = drawn.weights.reshape(50, LENGTHS, 5)
    assert (blocks == blocks[:, :1]).all()
    chosen = np.arange(5 * LENGTHS) < 5
    assert drawn.of(chosen).weights.shape == (50, 5)
    assert drawn.of(chosen).clusters == 5


def test_the_small_sample_factor_is_students() -> None:
    """t quantiles at 97.5 % from a table: 2.365 (7), 2.201 (11), 1.984 (99)."""
    for clusters, t in ((8, 2.365), (12, 2.201), (100, 1.984)):
        want = (clusters / (clusters - 1)) ** 0.5 * t / 1.95996
        assert abs(small_sample_factor(clusters) / want - 1) < 0.01  # as its docstring says


def test_a_contrast_is_paired() -> None:
    """Two configurations that differ by a constant differ by it in every resample."""
    first = sample(0)
    second = {"x": first["x"] + 10 * 0.5, "n": first["n"]}
    c = contrast(
        second, first, mean, lambda a, b: a - b, resample(prompts_of(12), 0), n=480, unit=""
    )
    assert c.high - c.low < 1e-12 < c.value
    assert c.value == pytest.approx(0.5)


def test_comparing_nothing_is_an_error() -> None:
    drawn = resample(np.arange(2), 0)
    with pytest.raises(NothingComparedError, match="zero compared elements"):
        estimate({"x": np.zeros(2), "n": np.ones(2)}, mean, drawn, n=0, unit="")
    with pytest.raises(NothingComparedError, match="no sequence was compared"):
        resample(np.zeros(0, dtype=np.int64), 0)


def test_a_metric_that_is_not_finite_is_an_error() -> None:
    drawn = resample(np.arange(2), 0)
    with (
        np.errstate(divide="ignore", invalid="ignore"),
        pytest.raises(ValueError, match="metric is not finite: nan"),
    ):
        estimate({"x": np.zeros(2), "n": np.zeros(2)}, mean, drawn, n=2, unit="")


@pytest.mark.parametrize(
    ("low", "high", "floor", "verdict"),
    [
        (0.1, 0.29, 0.0, HEALTHY),
        (0.1, 0.3, 0.0, HEALTHY),
        (0.1, 0.31, 0.0, INCONCLUSIVE),
        (0.3, 0.4, 0.0, INCONCLUSIVE),
        (0.31, 0.4, 0.0, IMPAIRED),
        (0.31, 0.4, 0.3, INCONCLUSIVE),
        (0.1, 0.2, 0.5, INCONCLUSIVE),
        (0.1, 0.2, float("nan"), INCONCLUSIVE),
    ],
)
def test_cell_verdict_at_its_limit(low: float, high: float, floor: float, verdict: str) -> None:
    metric = Metric((low + high) / 2, low, high, 10, "")
    assert cell_verdict(metric, 0.3, golden_floor=floor, batch_variance=0.0) == verdict


YES, NO = Metric(0.5, 0.4, 0.6, 10, ""), Metric(0.01, -0.1, 0.1, 10, "")


@pytest.mark.parametrize(
    ("pure", "promoted", "demoted", "healed", "added", "null", "verdict"),
    [
        (IMPAIRED, HEALTHY, IMPAIRED, YES, YES, True, SUPPORTED),
        (IMPAIRED, IMPAIRED, IMPAIRED, YES, YES, True, PARTLY),
        (IMPAIRED, HEALTHY, HEALTHY, YES, NO, True, PARTLY),
        (IMPAIRED, IMPAIRED, HEALTHY, NO, NO, True, REFUTED),
        (HEALTHY, HEALTHY, HEALTHY, NO, NO, True, REFUTED),  # nothing was impaired to begin with
        (IMPAIRED, HEALTHY, IMPAIRED, NO, YES, True, PARTLY),  # the contrast includes 0
        (IMPAIRED, HEALTHY, IMPAIRED, YES, NO, True, PARTLY),
        (IMPAIRED, INCONCLUSIVE, IMPAIRED, YES, YES, True, INCONCLUSIVE),
        (IMPAIRED, HEALTHY, INCONCLUSIVE, YES, YES, True, INCONCLUSIVE),
        (INCONCLUSIVE, HEALTHY, IMPAIRED, YES, YES, True, INCONCLUSIVE),
        (IMPAIRED, HEALTHY, IMPAIRED, YES, YES, False, INCONCLUSIVE),
    ],
)
def test_hypothesis_verdict_needs_both_contrasts_and_a_null_control(
    pure: str, promoted: str, demoted: str, healed: Metric, added: Metric, null: bool, verdict: str
) -> None:
    got = hypothesis_verdict(
        pure, promoted, demoted, healed=healed, added=added, control_is_null=null
    )
    assert got == verdict


def test_every_decision_says_what_it_means() -> None:
    for name, decision in DECISIONS.items():
        assert decision.hypothesis == name
        assert decision.limit > 0
        assert len(decision.meaning.split()) > 10


def test_a_damage_of_zero_has_no_share_to_remove() -> None:
    """Exact rewards, or a resample that drew none of the damaged clusters: 0, and no division."""
    metrics = {"error": Measure(lambda t: t["error"] / t["tokens"], "x")}
    paired = Paired(metrics, resample(np.arange(8), 0))
    none = {"error": np.zeros(8), "tokens": np.ones(8)}
    some = {"error": np.eye(8)[0], "tokens": np.ones(8)}
    assert paired.healed(none, none, "error").value == 0
    healed = paired.healed(some, none, "error")
    assert (healed.value, healed.high) == (1.0, 1.0)
    assert healed.low <= 0, "a third of the resamples drew no damage"


@pytest.mark.parametrize(
    ("low", "high", "golden", "own", "wanted"),
    [
        (0.5, 0.75, 0.125, 0.0, "impaired"),
        (0.5, 0.75, 0.25, 0.0, "inconclusive"),  # at the limit: not above it
        (0.5, 0.75, 0.125, 8.0, "impaired"),  # bf16 that does not repeat itself is no excuse
        (0.0, 0.125, 0.125, 0.125, "healthy"),  # at the limit
        (0.0, 0.125, 0.125, 0.1875, "inconclusive"),
        (0.0, 0.0, 0.25, 0.0, "inconclusive"),  # the truth is not known to less than the limit
        (0.125, 0.5, 0.0, 0.0, "inconclusive"),
    ],
)
def test_a_verdict_is_never_finer_than_the_noise_of_the_truth(
    low: float, high: float, golden: float, own: float, wanted: str
) -> None:
    damage = Metric((low + high) / 2, low, high, 10, "x")
    assert cell_verdict(damage, 0.25, golden_floor=golden, batch_variance=own) == wanted


@pytest.mark.parametrize(
    ("low", "high", "golden", "own", "reason"),
    [
        (0.25, 0.75, 0.5, 0.5, "FP32 in another batch shape is off by 0.5 itself, which is at or"),
        (0.25, 0.75, 0.0, 0.0, "its interval [0.25, 0.75] straddles the limit of 0.32. Measure on"),
        (0.0, 0.25, 0.0, 0.5, "interval [0, 0.25] and its batch variance of 0.5 together pass the"),
        (0.5, 0.75, 0.25, 0.0, "interval [0.5, 0.75] less the 0.25 by which FP32 is off itself"),
        (0.5, 0.75, 0.0, 0.0, ""),
    ],
)
def test_an_inconclusive_cell_says_which_rule_left_it_open(
    low: float, high: float, golden: float, own: float, reason: str
) -> None:
    def point(x: float) -> Rebatched:
        return Rebatched(Metric(x, x, x, 10, "x"), 0.0)

    damage = {"accum_err_final": Metric((low + high) / 2, low, high, 10, "x")}
    finite = {"log_ratio_nonfinite_frac": Metric(0.0, 0.0, 0.0, 10, "x")}
    cell = cell_of(HYPOTHESES["H4"], PURE, damage | finite, point(own), point(golden), Evidence())
    assert (cell.verdict == INCONCLUSIVE) == bool(reason)
    assert reason in why_inconclusive(cell, DECISIONS["H4"])
    assert bool(why_inconclusive(cell, DECISIONS["H4"])) == bool(reason)
