"""Laws that carry a damage: exact where it was measured, and never sure where they are not."""

import math
from pathlib import Path

import pytest

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.operating import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    OperatingPoint,
    along_kl,
    along_length,
    random_walk,
)
from precision_lib.forensics.statistics import Metric
from precision_lib.metrics.drift import PositionRange
from precision_lib.recipes.damage import damages_of
from precision_lib.record.files import load_record
from tests.unit.recipes.made_records import KL, figure, made_cell

RECORD = Path(__file__).parents[3] / "docs" / "records" / "cpu.json"
FINAL = Metric(0.2, 0.1, 0.3, n=8 * 100, unit="nats", clusters=8)
#: 100 tokens of 0.02: a random walk to 0.2.
POSITIONS = (PositionRange(0, 24, 0.02, 0.0, 0.1), PositionRange(25, 99, 0.02, 0.0, 0.2))
#: From a cell that grew with the power 1, between the square root and 1.5.
GROWTH = Metric(1.0, 0.5, 1.5, n=800, unit="power", clusters=8)


def at(length: int = 100, kl: float = KL) -> OperatingPoint:
    return OperatingPoint("ppo", length, kl, critic=True, reference=True, normalised="group")


def test_at_the_measured_length_the_figure_is_the_measured_one() -> None:
    carried = along_length(FINAL, POSITIONS, GROWTH, at(100))
    assert (carried.damage, carried.basis, carried.factor) == (FINAL, MEASURED, 1.0)


def test_a_longer_sum_grows_with_its_exponent_and_its_low_end_with_the_root() -> None:
    carried = along_length(FINAL, POSITIONS, GROWTH, at(400))
    assert carried.basis == EXTRAPOLATED
    assert carried.measured_at == "100 response tokens"
    found = carried.damage
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.2, 0.3 * 4**1.5))


def test_a_sum_never_grows_slower_than_the_square_root() -> None:
    flat = Metric(0.1, 0.0, 0.2, n=800, unit="power", clusters=8)
    carried = along_length(FINAL, POSITIONS, flat, at(400))
    assert carried.damage.high == pytest.approx(0.6)


def test_a_sum_that_is_small_by_chance_does_not_hide_the_random_walk() -> None:
    """Eight sums of 255 tokens were half of their walk, and those of 2,047 three times as large."""
    small = Metric(0.02, 0.01, 0.03, n=800, unit="nats", clusters=8)
    found = along_length(small, POSITIONS, GROWTH, at(400)).damage
    assert random_walk(POSITIONS, 400) == pytest.approx(0.4)
    assert (found.value, found.low, found.high) == pytest.approx((0.08, 0.02, 0.4))
    assert random_walk((), 400) is None


def test_where_the_sum_was_0_at_first_nothing_bounds_it() -> None:
    begins = (PositionRange(0, 24, 0.0, 0.0, 0.0), POSITIONS[1])
    assert along_length(FINAL, begins, GROWTH, at(400)).damage.high == math.inf
    assert along_length(FINAL, POSITIONS, None, at(400)).damage.high == math.inf


def test_a_sum_of_nothing_stays_nothing() -> None:
    none = Metric(0.0, 0.0, 0.0, n=800, unit="nats", clusters=8)
    assert along_length(none, (), None, at(10_000)).damage == none


def test_inside_the_measured_length_the_positions_decide() -> None:
    carried = along_length(FINAL, POSITIONS, GROWTH, at(50))
    assert carried.basis == INTERPOLATED
    assert carried.damage.value == pytest.approx(0.1 * 2**0.5)  # half-way in logarithms
    assert carried.damage.high / carried.damage.value == pytest.approx(1.5)
    assert along_length(FINAL, POSITIONS, GROWTH, at(1)).damage.value == pytest.approx(0.1 / 5)


def test_a_sum_without_its_number_of_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="without their number"):
        along_length(Metric(1, 1, 1, 1, "nats"), (), None, at(2))


@pytest.mark.parametrize(
    ("kl", "basis"),
    [(KL, MEASURED), (3 * KL, INTERPOLATED), (100 * KL, EXTRAPOLATED), (KL / 100, EXTRAPOLATED)],
)
def test_noise_over_signal_goes_with_the_root_of_the_kl(kl: float, basis: str) -> None:
    cell = made_cell(HYPOTHESES["H1"], "bf16_pure", 1.0)
    carried = along_kl(cell, "log_ratio_nsr", at(kl=kl))
    assert carried.basis == basis
    assert carried.damage.value == pytest.approx((KL / kl) ** 0.5)
    assert carried.factor == pytest.approx((KL / kl) ** 0.5)


@pytest.mark.parametrize(("length", "kl"), [(0, 1e-4), (1, 0.0), (1, math.inf), (1, math.nan)])
def test_an_impossible_operating_point_is_refused(length: int, kl: float) -> None:
    with pytest.raises(ValueError, match=r"give a KL above 0|has at least 1 token"):
        at(length, kl)


def test_the_figure_of_a_made_cell_is_what_was_asked() -> None:
    assert figure(2.0).value == 2.0


def test_at_its_own_point_every_cell_of_the_record_keeps_its_verdict() -> None:
    """Sums of different hypotheses have different lengths, so each is asked at its own."""
    record, compared = load_record(RECORD), 0
    for cell in record.cells:
        hypothesis = HYPOTHESES[cell.hypothesis]
        final = cell.metrics[hypothesis.decision.metric]
        point = at(round(final.n / (final.clusters or 1)), 1e-4)
        damages = {d.hypothesis: d for d in damages_of(record, cell.configuration, point)}
        assert damages[cell.hypothesis].verdict == cell.verdict, cell.name
        compared += 1
    assert compared > 50
