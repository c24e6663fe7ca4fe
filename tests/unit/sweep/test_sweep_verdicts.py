"""Words for hypotheses in every combination, and how often luck alone makes a verdict."""

import math

import numpy as np
import pytest

from precision_lib.forensics.hypotheses import DECISIONS, IN_SWEEPS
from precision_lib.forensics.statistics import CONFIDENCE, Metric
from precision_lib.forensics.verdicts import (
    HEALTHY,
    IMPAIRED,
    INCONCLUSIVE,
    PARTLY,
    REFUTED,
    SUPPORTED,
)
from precision_lib.matrix import TWIN
from precision_lib.record.sweep import (
    Difference,
    TrainingCell,
    TrainingEvidence,
    TrainingVerdict,
    TwinControl,
)
from precision_lib.sweep.blocks import Blocks
from precision_lib.sweep.cells import DAMAGE, LIMIT
from precision_lib.sweep.evidence import weigh
from precision_lib.sweep.hypotheses import control_of, word_of
from precision_lib.sweep.plan import REFERENCE_RUN
from precision_lib.training.failures import KL_EXPLOSION
from tests.unit.sweep_runs import NAMES, a_run, noisy_gains, runs_of

NULL, NOT_NULL, UNKNOWN = (
    TwinControl("fp32_twin", Difference(0.0, 0.0, 0.0), null) for null in (True, False, None)
)
HEALED, NOT_HEALED = Metric(0.5, 0.4, 0.6, 3, ""), Metric(0.1, -0.1, 0.3, 3, "")
VERDICTS = (HEALTHY, IMPAIRED, INCONCLUSIVE)
LETTERS = {"S": SUPPORTED, "P": PARTLY, "R": REFUTED, "?": INCONCLUSIVE}
#: (bf16_pure, promoted) to the word without a demotion and with a demotion of each VERDICT.
WORDS = {
    (HEALTHY, HEALTHY): "RRP?",
    (HEALTHY, IMPAIRED): "RRP?",
    (HEALTHY, INCONCLUSIVE): "RRP?",
    (IMPAIRED, HEALTHY): "PPS?",
    (IMPAIRED, IMPAIRED): "RRP?",
    (IMPAIRED, INCONCLUSIVE): "????",
    (INCONCLUSIVE, HEALTHY): "????",
    (INCONCLUSIVE, IMPAIRED): "????",
    (INCONCLUSIVE, INCONCLUSIVE): "????",
}


def cell(verdict: str) -> TrainingCell:
    return TrainingCell("c", verdict, {}, {}, None)


def words(pure: str, promoted: str, healed: Metric | None, control: TwinControl) -> str:
    """Letters of the words without a demotion, and with one of each verdict."""
    demoted = (None, *map(cell, VERDICTS))
    found = [word_of(cell(pure), cell(promoted), d, healed, control) for d in demoted]
    return "".join(letter for word in found for letter, name in LETTERS.items() if name == word)


@pytest.mark.parametrize(("pure", "promoted"), WORDS)
def test_every_combination_of_promotion_and_demotion_has_its_word(pure: str, promoted: str) -> None:
    assert words(pure, promoted, HEALED, NULL) == WORDS[pure, promoted]
    assert words(pure, promoted, None, NULL) == WORDS[pure, promoted], "runs that failed"
    for control in (NOT_NULL, UNKNOWN):
        assert words(pure, promoted, HEALED, control) == "????"


def test_a_promotion_whose_contrast_holds_0_does_not_heal() -> None:
    assert words(IMPAIRED, HEALTHY, NOT_HEALED, NULL) == "RRP?"


def swept(means: dict[str, float], deviation: float = 0.01, seeds: int = 3) -> TrainingEvidence:
    generator = np.random.default_rng(0)
    return weigh(runs_of(noisy_gains(means, generator, seeds=seeds, deviation=deviation)))


def verdict_of(evidence: TrainingEvidence, hypothesis: str) -> TrainingVerdict:
    [found] = [v for v in evidence.hypotheses if v.hypothesis == hypothesis]
    return found


@pytest.mark.parametrize("hypothesis", IN_SWEEPS)
def test_a_hypothesis_is_judged_by_its_own_promotion_and_demotion(hypothesis: str) -> None:
    """All promotions fail and all demotions are harmless but for one's own."""
    d = DECISIONS[hypothesis]
    means = dict.fromkeys([n for n in NAMES if n.startswith("bf16")], 0.5)
    means |= {other.demoted: 1.0 for other in (h.decision for h in IN_SWEEPS.values())}
    evidence = swept(means | {d.promoted: 1.0, d.demoted: 0.5})
    assert {v.hypothesis for v in evidence.hypotheses if v.verdict == SUPPORTED} == {hypothesis}
    assert {v.verdict for v in evidence.hypotheses} == {SUPPORTED, REFUTED}
    found = verdict_of(evidence, hypothesis)
    assert found.title == d.title
    assert found.healed is not None
    assert found.healed.low < 0.5 < found.healed.high
    for name in ("bf16_pure", d.promoted, d.demoted):
        assert name in found.explanation
    assert "takes back" in found.explanation


def test_a_promotion_that_was_not_trained_leaves_its_hypothesis_open() -> None:
    gains = dict.fromkeys((REFERENCE_RUN.name, TWIN.name, "bf16_pure"), (1.0, 1.1))
    for verdict in weigh(runs_of(gains)).hypotheses:
        assert verdict.verdict == INCONCLUSIVE
        assert verdict.seeds_needed is None
        assert "were not both trained" in verdict.explanation


def test_a_failure_that_the_promotion_prevents_is_healed_by_it() -> None:
    runs = runs_of(noisy_gains({}, np.random.default_rng(0), seeds=3, deviation=0.01))
    runs["bf16_pure", 1] = a_run("bf16_pure", 1, 1.0, status=KL_EXPLOSION)
    verdict = verdict_of(weigh(runs), "H1")
    assert verdict.verdict == PARTLY  # no demotion was trained
    assert verdict.healed is None
    assert "bf16_pure failed with seed 1 (kl_explosion)" in verdict.explanation


def test_a_twin_that_differs_makes_everything_inconclusive() -> None:
    clear = {"bf16_pure": 0.5}
    evidence = swept(clear | {TWIN.name: 0.8})
    for verdict in evidence.hypotheses:
        assert verdict.control.is_null is False
        assert (verdict.verdict, verdict.seeds_needed) == (INCONCLUSIVE, None)
    for verdict in swept(clear).hypotheses:
        assert verdict.control.is_null is True
        assert verdict.verdict == PARTLY


def test_a_twin_of_one_seed_has_not_been_compared() -> None:
    for verdict in swept({}, seeds=1).hypotheses:
        assert verdict.control.is_null is None
        assert verdict.verdict == INCONCLUSIVE


def test_the_twin_is_null_within_its_interval_and_not_beyond_it() -> None:
    """At 99.99 % on two degrees of freedom, t is 100: sqrt(1 / (2 tail)), tail one in 10,000."""
    residual = np.array([[0.01, -0.01], [-0.01, 0.01], [0.0, 0.0]])
    names = (REFERENCE_RUN.name, TWIN.name, "c")
    deviation = Blocks(residual, names).residual_deviation
    width = 0.9999 * math.sqrt(2 / (1 - 0.9999**2)) * deviation  # times sqrt(2 / S), S = 2
    for apart, null in ((0.99, True), (1.01, False)):
        moved = residual + np.array([[0.0], [apart * width], [0.0]])
        assert control_of(Blocks(moved, names)).is_null is null


def test_a_hypothesis_needs_the_seeds_of_its_most_undecided_cell() -> None:
    gains = undecided({"bf16_pure": 0.25, "bf16_fp32_kl": 0.2})
    evidence = weigh(runs_of(gains))
    pure, promoted = (
        evidence.by_configuration[n].seeds_needed for n in ("bf16_pure", "bf16_fp32_kl")
    )
    assert pure is not None
    assert promoted is not None
    assert promoted > pure
    assert verdict_of(evidence, "H1").seeds_needed == promoted


def test_no_number_of_seeds_makes_up_for_a_twin_that_differs() -> None:
    gains = undecided({"bf16_pure": 0.25, "bf16_fp32_kl": 0.2, TWIN.name: 5.0})
    evidence = weigh(runs_of(gains))
    assert evidence.by_configuration["bf16_pure"].seeds_needed is not None
    assert evidence.hypotheses[0].control.is_null is False
    assert evidence.hypotheses[0].seeds_needed is None


def undecided(lost: dict[str, float]) -> dict[str, list[float]]:
    """Gains whose means lose this, 0 where nothing is said, with a spread that hides it."""
    wave = 0.2 * np.cos(2 * math.pi * np.arange(3) / 3)
    return {n: list(1 - lost.get(n, 0.0) + np.roll(wave, i)) for i, n in enumerate(NAMES)}


def test_seeds_that_are_unknown_for_one_cell_are_unknown_for_the_hypothesis() -> None:
    """A cell exactly at the limit: no number of seeds decides it."""
    evidence = weigh(runs_of(undecided({"bf16_pure": 0.25, "bf16_fp32_kl": LIMIT})))
    at_limit = evidence.by_configuration["bf16_fp32_kl"]
    assert at_limit.metrics[DAMAGE].value == pytest.approx(LIMIT)
    assert (at_limit.verdict, at_limit.seeds_needed) == (INCONCLUSIVE, None)
    assert evidence.by_configuration["bf16_pure"].seeds_needed is not None
    assert verdict_of(evidence, "H1").seeds_needed is None


SWEEPS = 150
BF16 = [name for name in NAMES if name not in (REFERENCE_RUN.name, TWIN.name)]


def rates(lost: float, deviation: float, seed: int) -> dict[str, tuple[float, float]]:
    """Verdict to (share of cells that have it, its standard error), all cells losing ``lost``.

    Cells of one sweep share a baseline: the standard error is over sweeps.
    """
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(SWEEPS):
        means = dict.fromkeys(BF16, 1 - lost)
        gains = noisy_gains(means, generator, seeds=3, deviation=deviation, seed_effect=0.1)
        evidence = weigh(runs_of(gains, steps=1))
        assert evidence.hypotheses[0].control.is_null
        found.append([evidence.by_configuration[name].verdict for name in BF16])
    table = np.array(found)
    shares = {v: (table == v).mean(1) for v in VERDICTS}
    return {v: (s.mean(), s.std(ddof=1) / math.sqrt(SWEEPS)) for v, s in shares.items()}


ONE_SIDE = (1 - CONFIDENCE) / 2
SIGMAS = 4.5


def test_luck_alone_impairs_no_more_cells_than_the_interval_admits() -> None:
    """Nothing is lost, and the spread is three times as large as the limit."""
    rate, error = rates(0.0, 3 * LIMIT, 1)[IMPAIRED]
    assert error > 0, "no cell is impaired: the spread is too small to deceive"
    assert rate <= ONE_SIDE + SIGMAS * error, rate


def test_at_the_limit_both_verdicts_are_wrong_as_often_as_the_interval_admits() -> None:
    """A cell that loses a tenth exactly is called impaired, and healthy, in 2.5 % each."""
    found = rates(LIMIT, 0.1, 2)
    for verdict in (HEALTHY, IMPAIRED):
        rate, error = found[verdict]
        assert abs(rate - ONE_SIDE) <= SIGMAS * error, (verdict, rate)


def test_an_interval_of_half_its_width_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Blocks.half_width

    def half(self: Blocks, seeds: int | None = None, confidence: float = CONFIDENCE) -> float:
        return whole(self, seeds, confidence) / (2 if confidence == CONFIDENCE else 1)

    monkeypatch.setattr(Blocks, "half_width", half)
    rate, error = rates(LIMIT, 0.1, 2)[IMPAIRED]
    assert rate > ONE_SIDE + SIGMAS * error
