"""H6 over the matrix: a cell per configuration, the laws of stored weights, its controls.

A cell that comes out ``impaired`` is a finding, not a failure: a test fails when the measurement
cannot be trusted.
"""

from typing import TYPE_CHECKING

import pytest

from precision_lib.forensics.evidence import H6Evidence
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.h6.study import H6Study
    from precision_lib.phases.main_job import MainJob
    from precision_lib.plugin.keeping import Keep

#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5
DAMAGE = "logprob_change_rel_error"
WEIGHTS = ("weights_moved_frac", "masters_moved_frac")
STORED, NARROW = ("fp32", "bf16", "fp16"), ("bf16", "fp16")


@pytest.fixture(scope="session")
def h6_study(main_job: "MainJob") -> "H6Study":
    """H6 over the frozen trajectories."""
    from precision_lib.forensics.h6.study import H6Study

    study = main_job.study("H6")
    assert isinstance(study, H6Study)
    return study


def evidence(study: "H6Study", name: str) -> H6Evidence:
    return study.cell(get_configuration(name)).shows(H6Evidence)


@pytest.mark.cell("H6")
def test_cell_has_a_verdict(
    configuration: PrecisionConfig,
    h6_study: "H6Study",
    keep: "Keep",
) -> None:
    """Every log-prob and every weight is compared."""
    cell = h6_study.cell(configuration)
    keep(cell)
    counts = {name: metric.n for name, metric in cell.metrics.items()}
    shown = cell.shows(H6Evidence)
    taken = h6_study.walker.settings.steps - shown.skipped_steps
    assert {counts.pop(name) for name in WEIGHTS} == {shown.weights * taken}
    assert set(counts.values()) == {int(h6_study.mask.sum())}
    assert all(metric.n > 0 for metric in cell.metrics.values())


def test_observed_formats_are_those_of_the_configuration(
    configuration: PrecisionConfig, h6_study: "H6Study"
) -> None:
    """The gradient's model and the stored weights really had the configured formats."""
    observed = h6_study.cell(configuration).evidence.observed_formats
    exercised = {name: fmt for name, fmt in observed.items() if fmt is not None}
    assert exercised == {name: configuration.format_of(name) for name in ("policy", "master")}


@pytest.mark.parametrize("stored", STORED)
def test_a_step_below_half_an_ulp_is_lost_and_one_above_survives(
    stored: str, configuration: PrecisionConfig, h6_study: "H6Study"
) -> None:
    """Weight by weight: no exception, and what is stored is the nearest number."""
    laws = h6_study.cell(configuration).shows(H6Evidence).masters[stored].laws
    assert laws.n > 0
    assert laws.undecided < laws.n / 1000
    assert (laws.exceptions, laws.off_nearest) == (0, 0), laws


@pytest.mark.parametrize("copy", NARROW)
@pytest.mark.parametrize("name", ["bf16_pure", "fp32_baseline"])
def test_a_copy_of_fp32_masters_moves_with_probability_step_over_ulp(
    name: str, copy: str, h6_study: "H6Study"
) -> None:
    law = evidence(h6_study, name).copies[copy]
    assert law.n > 0
    if law.z is None:
        pytest.skip(f"every weight of this checkpoint lies on the {copy} grid: nothing is random")
    assert abs(law.z) < SIGMAS, law


@pytest.mark.parametrize("copy", NARROW)
def test_a_copy_does_not_follow_the_law_of_stored_weights(copy: str, h6_study: "H6Study") -> None:
    """The check of the law above can fail: here it must."""
    found = evidence(h6_study, "fp32_baseline")
    law, points = found.copies[copy], found.first_step[copy]
    if law.z is None:
        pytest.skip(f"every weight of this checkpoint lies on the {copy} grid: nothing is random")
    rate = h6_study.walker.settings.learning_rate
    (stored,) = (p.moved_frac for p in points if p.learning_rate == rate)
    assert abs(law.moved - stored * law.n) > SIGMAS * law.variance**0.5


def test_fp32_masters_lose_exactly_nothing(
    configuration: PrecisionConfig, h6_study: "H6Study"
) -> None:
    """Beside every policy, also where the configuration stores its weights in 16 bits."""
    assert h6_study.cell(configuration).shows(H6Evidence).masters["fp32"].metrics[DAMAGE].value == 0


def test_controls_are_null_and_the_hypothesis_has_a_verdict(
    h6_study: "H6Study", recorder: Recorder
) -> None:
    """FP32 masters beside themselves, and the same steps once more, differ by exactly 0."""
    verdict = h6_study.verdict()
    recorder.add_hypothesis(verdict)
    assert verdict.control.fp32_masters_n
    assert verdict.control.is_null, verdict.control
