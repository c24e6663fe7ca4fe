"""H4 over the matrix: a cell per configuration, the laws of the drift, its controls.

A cell that comes out ``impaired`` is a finding, not a failure: a test fails when the measurement
cannot be trusted.
"""

from typing import TYPE_CHECKING

import pytest

from precision_lib.forensics.evidence import H4Evidence
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.h4.study import H4Study
    from precision_lib.phases.main_job import MainJob
    from precision_lib.plugin.keeping import Keep

#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5


@pytest.fixture(scope="session")
def h4_study(main_job: "MainJob") -> "H4Study":
    """H4 over long sequences of its own."""
    from precision_lib.forensics.h4.study import H4Study

    study = main_job.study("H4")
    assert isinstance(study, H4Study)
    return study


@pytest.mark.cell("H4")
def test_cell_has_a_verdict(
    configuration: PrecisionConfig,
    h4_study: "H4Study",
    keep: "Keep",
) -> None:
    """Every metric is measured on every token, and FP32 repeats itself to less than the limit."""
    cell = h4_study.cell(configuration)
    keep(cell)
    tokens = sum(r.length * len(r.tokens) for r in h4_study.given.sampled.responses)
    counts = {name: metric.n for name, metric in cell.metrics.items()}
    assert 0 < counts.pop("batch_variance") <= tokens  # of the checked sequences
    assert set(counts.values()) == {tokens}
    assert tokens > 0


def test_observed_formats_are_those_of_the_configuration(
    configuration: PrecisionConfig, h4_study: "H4Study"
) -> None:
    """Parameters, logits and log-ratio really had the configured formats."""
    observed = h4_study.cell(configuration).evidence.observed_formats
    exercised = {name: fmt for name, fmt in observed.items() if fmt is not None}
    assert set(exercised) == {"policy", "reference", "kl"}
    assert exercised == {name: configuration.components[name] for name in exercised}


def test_rope_table_is_the_checkpoints(configuration: PrecisionConfig, h4_study: "H4Study") -> None:
    """A cast is of parameters only; the phase error of a rounded table grows with position."""
    buffers = h4_study.cell(configuration).shows(H4Evidence).buffers
    assert not {"bf16", "fp16"} & set(buffers.replace(" in ", "+").split("+")), buffers


def test_identical_weights_differ_by_exactly_zero_in_one_format(
    configuration: PrecisionConfig, h4_study: "H4Study"
) -> None:
    """The null control: before any update nothing drifts, unless the formats differ."""
    control = h4_study.cell(configuration).shows(H4Evidence).identical_weights
    assert control is not None
    assert control.n
    if control.same_format:
        assert control.nonzero == 0, f"{control.nonzero} of {control.n} are not zero"
    else:
        assert control.accum_err_final, "two formats cannot agree on every token"


@pytest.mark.parametrize("name", ["fp32_baseline", "fp32_bf16_reward", "fp32_bf16_value"])
def test_golden_path_is_healthy_against_float64(name: str, h4_study: "H4Study") -> None:
    """FP32 in all that H4 runs: the one cell whose verdict is known before the measurement."""
    cell = h4_study.cell(get_configuration(name))
    assert cell.evidence.measured_against == "fp64"
    assert cell.verdict == "healthy"
    # An error of exactly 0 would say that FP32 was compared with itself.
    assert cell.metrics["accum_err_final"].low > 0


def test_sampled_tokens_are_the_policys_own(h4_study: "H4Study") -> None:
    """Their log-probs scatter about minus the entropy, as their variance says; a shift does not."""
    from precision_lib.forensics.h4.expected_drift import source_z

    z = source_z(h4_study.drift("sampled", "bf16"))
    assert abs(z) < SIGMAS, f"z = {z:.1f}, limit {SIGMAS}"


def test_drift_of_sampled_tokens_is_the_kl(h4_study: "H4Study") -> None:
    """Sum of log pi - log mu over tokens of mu: -KL(mu || pi) per token, a martingale about it."""
    from precision_lib.forensics.h4.expected_drift import drift_z

    drift = h4_study.drift("sampled", "bf16")
    z = drift_z(drift)
    assert drift.golden_kl.sum() > 0
    assert abs(z) < SIGMAS, f"z = {z:.1f} over {drift.error.size} tokens, limit {SIGMAS}"


def test_sums_scatter_as_a_random_walk_does(h4_study: "H4Study") -> None:
    """The variance of S_T about its drift is the summed variance of the tokens' errors: 2 KL T."""
    from precision_lib.forensics.h4.expected_drift import random_walk_z

    z = random_walk_z(h4_study.drift("sampled", "bf16"))
    assert abs(z) < SIGMAS, f"z = {z:.1f}, limit {SIGMAS}"


def test_controls_are_null_and_the_hypothesis_has_a_verdict(
    h4_study: "H4Study", recorder: Recorder
) -> None:
    """Identical weights do not drift; promoting an irrelevant component changes nothing."""
    verdict = h4_study.verdict()
    recorder.add_hypothesis(verdict)
    assert verdict.control.identical_weights_n
    assert verdict.control.is_null, verdict.control
