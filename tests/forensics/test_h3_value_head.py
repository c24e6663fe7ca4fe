"""H3 over the matrix: a cell per configuration, the laws behind it, its controls.

A cell that comes out ``impaired`` is a finding, not a failure: a test fails when the measurement
cannot be trusted.
"""

from typing import TYPE_CHECKING

import pytest

from precision_lib.forensics.evidence import Cause, H3Evidence
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.h3.study import H3Study
    from precision_lib.phases.main_job import MainJob
    from precision_lib.plugin.keeping import Keep

#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5
DEMOTED = get_configuration("fp32_bf16_value")


@pytest.fixture(scope="session")
def h3_study(main_job: "MainJob") -> "H3Study":
    """H3 over the frozen trajectories."""
    from precision_lib.forensics.h3.study import H3Study

    study = main_job.study("H3")
    assert isinstance(study, H3Study)
    return study


def stored_values(study: "H3Study") -> list[Cause]:
    """Per scale of the rewards: FP32 predictions that are rounded when stored, nothing else.

    The laws are about values at random phases of the grid. Of a normal spread of one step or more
    the phase is uniform to exp(-2 pi^2) = 3e-9; values closer together are rounded alike.
    """
    causes = study.cell(DEMOTED).shows(H3Evidence).causes
    stored = [c for c in causes if c.cause == "stored_values"]
    spoken_of = [c for c in stored if c.step_over_spread is not None and c.step_over_spread <= 1]
    if not spoken_of:
        pytest.skip("this critic's values lie within one step of bf16: the laws say nothing of it")
    return spoken_of


@pytest.mark.cell("H3")
def test_cell_has_a_verdict(
    configuration: PrecisionConfig,
    h3_study: "H3Study",
    keep: "Keep",
) -> None:
    """Every metric is measured on every token, and FP32 repeats itself to less than the limit."""
    cell = h3_study.cell(configuration)
    keep(cell)
    tokens = int(h3_study.mask.sum())
    assert {metric.n for metric in cell.metrics.values()} == {tokens}
    assert tokens > 0


def test_observed_formats_are_those_of_the_configuration(
    configuration: PrecisionConfig, h3_study: "H3Study"
) -> None:
    """Trunk and predictions really had the configured formats, digits and all."""
    observed = h3_study.cell(configuration).evidence.observed_formats
    exercised = {name: fmt for name, fmt in observed.items() if fmt is not None}
    assert exercised == {name: configuration.components[name] for name in ("policy", "value")}


def test_mask_covers_the_response_and_nothing_else(h3_study: "H3Study") -> None:
    """Token by token against the lengths: a mask of the wrong place has the right size."""
    compared = 0
    for shard in h3_study.critics.states.shards:
        for row, mask in enumerate(shard.mask):
            start, count = int(shard.prompt_lengths[row]), int(shard.response_lengths[row])
            assert mask.nonzero().flatten().tolist() == list(range(start - 1, start - 1 + count))
            compared += count
    assert compared == int(h3_study.mask.sum())


def test_critic_works_before_anything_is_rounded(h3_study: "H3Study") -> None:
    """Nothing says that it is worse than the mean return, which explains 0 of the variance."""
    critic = h3_study.cell(DEMOTED).shows(H3Evidence).critic
    assert critic is not None
    explained = critic.explained_variance
    assert critic.return_std > 0
    assert explained.high > 0, (
        f"the value head explains {explained.words} of the returns' variance: it is no critic of "
        "these rewards"
    )


@pytest.mark.parametrize("name", ["fp32_baseline", "fp32_bf16_reward", "fp32_bf16_kl"])
def test_golden_path_is_healthy_against_float64(name: str, h3_study: "H3Study") -> None:
    """FP32 in all that H3 runs: the one cell whose verdict is known before the measurement."""
    cell = h3_study.cell(get_configuration(name))
    assert cell.evidence.measured_against == "fp64"
    assert cell.verdict == "healthy"
    # An error of exactly 0 would say that FP32 was compared with itself.
    assert cell.metrics["advantage_rms_error"].low > 0
    assert h3_study.critics.states.observed("fp64") == "fp64"


def test_stagnation_of_stored_values_matches_the_derivation(h3_study: "H3Study") -> None:
    """A value keeps its cell of the bf16 grid under a move of d with probability 1 - |d| / ulp.

    Each (token, step) is a Bernoulli draw over the phase of the grid, so the share has a variance
    of at most p (1 - p) / n at the mean p; all points together, so that no single one is picked.
    """
    tokens = int(h3_study.mask.sum())
    moves = tokens * h3_study.settings.updates.steps
    for point in stored_values(h3_study):
        measured = point.metrics["value_stagnation_rate"].value
        derived = point.value_stagnation_rate_predicted
        assert derived is not None
        # One move in n is the finest that a share of n moves can say.
        error = (max(derived * (1 - derived), 1 / moves) / moves) ** 0.5
        z = (measured - derived) / error
        assert abs(z) < SIGMAS, f"{point.rewards}: {measured:.5f}, derived {derived:.5f}, {z:.1f}"


def test_advantage_error_of_stored_values_matches_the_derivation(h3_study: "H3Study") -> None:
    """RMS error = ulp(V) / sqrt(12) * sqrt(2 / (1 + lambda)) over the advantages' deviation.

    The limit is the bootstrap's own standard error of the measured RMS. Where the step is no
    longer small against the advantages the derivation does not hold and is not asked.
    """
    for point in stored_values(h3_study):
        measured = point.metrics["advantage_rms_error"]
        derived = point.advantage_rms_error_predicted
        assert derived is not None
        error = (measured.high - measured.low) / (2 * 1.96)
        z = (measured.value - derived) / error
        assert abs(z) < SIGMAS, f"{point.rewards}: {measured}, derived {derived:.5f}, {z:.1f}"


def test_scaling_the_rewards_leaves_the_advantages_error(h3_study: "H3Study") -> None:
    """The step relative to the value wobbles by a factor of 2 within a binade, and no more."""
    errors = [point.metrics["advantage_rms_error"] for point in stored_values(h3_study)]
    assert max(e.low for e in errors) <= 2 * min(e.high for e in errors)


def test_an_offset_multiplies_the_advantages_error(h3_study: "H3Study") -> None:
    """The steps grow with the offset, the advantages do not: the error grows until it saturates."""
    points = h3_study.cell(DEMOTED).shows(H3Evidence).by_offset
    first, last = points[0], points[-1]
    assert first.offset_over_spread < last.offset_over_spread
    assert first.metrics["advantage_rms_error"].high < last.metrics["advantage_rms_error"].low


def test_the_golden_head_moves_in_its_updates(h3_study: "H3Study") -> None:
    """Without a move of the twin there is no stagnation to speak of; FP32 must show most."""
    from precision_lib.forensics.causal import REFERENCE_RUN

    twin = h3_study.critics.over_updates(REFERENCE_RUN, h3_study.critics.native())
    assert int((twin[1:] != twin[:-1]).sum()) > twin[1:].numel() // 2


def test_controls_are_null_and_the_hypothesis_has_a_verdict(
    h3_study: "H3Study", recorder: Recorder
) -> None:
    """Golden values are those that were frozen; the golden head never lags itself."""
    verdict = h3_study.verdict()
    recorder.add_hypothesis(verdict)
    assert verdict.control.golden_values_n
    assert verdict.control.is_null, verdict.control
