"""H5 over the matrix: a cell per configuration, the laws of the mismatch, its controls.

A cell that comes out ``impaired`` is a finding, not a failure: a test fails when the measurement
cannot be trusted.
"""

from typing import TYPE_CHECKING

import pytest

from precision_lib.forensics.evidence import H5Evidence
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.h5.study import H5Study
    from precision_lib.phases.main_job import MainJob
    from precision_lib.plugin.keeping import Keep

#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5
DEMOTED = get_configuration("fp32_bf16_rollout")


@pytest.fixture(scope="session")
def h5_study(main_job: "MainJob") -> "H5Study":
    """H5 over sequences of its own."""
    from precision_lib.forensics.h5.study import H5Study

    study = main_job.study("H5")
    assert isinstance(study, H5Study)
    return study


@pytest.mark.cell("H5")
def test_cell_has_a_verdict(
    configuration: PrecisionConfig,
    h5_study: "H5Study",
    keep: "Keep",
) -> None:
    """Every metric is measured on every token of the responses."""
    cell = h5_study.cell(configuration)
    keep(cell)
    (responses,) = h5_study.all.given.responses
    tokens = responses.length * len(responses.tokens)
    counts = {name: metric.n for name, metric in cell.metrics.items()}
    assert 0 < counts.pop("batch_variance") <= tokens  # of the checked openings
    assert set(counts.values()) == {tokens}
    assert tokens > 0


def test_observed_formats_are_those_of_the_configuration(
    configuration: PrecisionConfig, h5_study: "H5Study"
) -> None:
    """Trainer and engine really had the configured formats."""
    observed = h5_study.cell(configuration).evidence.observed_formats
    exercised = {name: fmt for name, fmt in observed.items() if fmt is not None}
    assert {"policy", "kl", "rollout"} <= set(exercised)
    assert exercised == {name: configuration.format_of(name) for name in exercised}


def test_fp32_engine_and_fp32_trainer_differ_by_rounding_alone(h5_study: "H5Study") -> None:
    """The one cell whose verdict is known: two orders of the same FP32 sums, not one."""
    cell = h5_study.cell(get_configuration("fp32_baseline"))
    assert cell.verdict == "healthy"
    # Exactly 0 would say that the trainer was compared with itself.
    assert cell.metrics["rollout_logprob_abs_diff_mean"].low > 0


@pytest.mark.parametrize("name", ["bf16_pure", "fp32_bf16_rollout"])
def test_errors_of_engines_on_other_grids_add_in_quadrature(name: str, h5_study: "H5Study") -> None:
    """Weights that are rounded to other grids give independent errors; one grid does not."""
    configuration = get_configuration(name)
    formats = h5_study.cell(configuration).shows(H5Evidence).formats
    z = {f: of.quadrature_z for f, of in formats.items() if f != configuration.policy}
    assert z
    assert all(abs(value) < SIGMAS for value in z.values()), f"{z}, limit {SIGMAS}"


def test_errors_of_engines_on_one_grid_go_together(h5_study: "H5Study") -> None:
    """The check of the law above can fail: here it must."""
    formats = h5_study.cell(get_configuration("bf16_pure")).shows(H5Evidence).formats
    assert formats["bf16"].quadrature_z > SIGMAS


def test_mismatch_of_a_bf16_engine_grows_with_the_square_root_of_the_length(
    h5_study: "H5Study",
) -> None:
    z = h5_study.cell(DEMOTED).shows(H5Evidence).laws["length_z"]
    assert abs(z) < SIGMAS, f"z = {z:.1f}, limit {SIGMAS}"


@pytest.mark.parametrize("law", ["probability", "temperature"])
def test_an_approximate_law_says_more_than_a_constant(law: str, h5_study: "H5Study") -> None:
    """sigma (1 - p), and 1/T: what they leave is recorded in standard errors."""
    laws = h5_study.cell(DEMOTED).shows(H5Evidence).laws
    assert abs(laws[f"{law}_flat_z"]) > SIGMAS
    assert abs(laws[f"{law}_z"]) < abs(laws[f"{law}_flat_z"]), laws


def test_controls_are_null_and_the_hypothesis_has_a_verdict(
    h5_study: "H5Study", recorder: Recorder
) -> None:
    """The trainer beside itself differs by exactly 0; an irrelevant promotion changes nothing."""
    verdict = h5_study.verdict()
    recorder.add_hypothesis(verdict)
    assert verdict.control.trainer_beside_itself_n
    assert verdict.control.is_null, verdict.control
