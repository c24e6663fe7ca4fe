"""H2 over the matrix: a cell per configuration, the null controls, and the law of stored rewards.

A cell that comes out ``impaired`` is a finding, not a failure: a test fails when the measurement
cannot be trusted. What the figures must agree with is derived (``forensics/reward_law.py``).
"""

from typing import TYPE_CHECKING

import pytest

from precision_lib.forensics.evidence import H2Evidence
from precision_lib.forensics.h2.rewards import CriticalOffsets, SyntheticRewards
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.h2.study import H2Study
    from precision_lib.phases.main_job import MainJob
    from precision_lib.plugin.keeping import Keep

#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5


@pytest.fixture(scope="session")
def h2_study(main_job: "MainJob") -> "H2Study":
    """H2 over the frozen trajectories."""
    from precision_lib.forensics.h2.study import H2Study

    study = main_job.study("H2")
    assert isinstance(study, H2Study)
    return study


@pytest.mark.cell("H2")
def test_cell_has_a_verdict(
    configuration: PrecisionConfig,
    h2_study: "H2Study",
    keep: "Keep",
) -> None:
    """Every score is looked at, and FP32 repeats itself to less than the limit."""
    cell = h2_study.cell(configuration)
    keep(cell)
    nonfinite = cell.metrics["reward_nonfinite_frac"]
    assert nonfinite.n == len(h2_study.golden) > 0
    if nonfinite.value == 0:
        assert cell.metrics["advantage_rms_error"].n == nonfinite.n
        assert cell.metrics["reward_kendall_tau"].n > 0


def test_observed_formats_are_those_of_the_configuration(
    configuration: PrecisionConfig, h2_study: "H2Study"
) -> None:
    """Parameters and scores really had the configured format, and so had the scores' values."""
    observed = h2_study.cell(configuration).evidence.observed_formats
    exercised = {name: fmt for name, fmt in observed.items() if fmt is not None}
    assert exercised == {"reward": configuration.reward}


def test_stored_rewards_use_the_grid_of_fp32(h2_study: "H2Study") -> None:
    """FP32 tensors full of bf16 values are laundered: the golden rewards would not be golden."""
    evidence = h2_study.cell(get_configuration("fp32_baseline")).shows(H2Evidence)
    assert evidence.golden_observed_format == "fp32"


def test_statistics_match_the_oracle(configuration: PrecisionConfig, h2_study: "H2Study") -> None:
    """Group and batch statistics of the scores, whatever their format, within the FP32 bound."""
    from precision_lib.forensics.h2 import operating_point as h2_points

    scores = h2_study.scores(configuration.reward)
    share = h2_points.statistics_over_bound(scores, h2_study.groups)
    assert share <= 1, f"advantages of {len(scores)} scores are {share:.3g} times their bound off"


def test_frozen_rewards_are_reproduced(h2_study: "H2Study") -> None:
    """FP32 gives the same bits twice, and the stored rewards within the noise of FP32."""
    from precision_lib.forensics.h2 import operating_point as h2_points

    found = h2_points.replay(h2_study.forwards, h2_study.golden)
    assert found.n > 0
    assert found.again_differs == 0, found
    assert found.stored_distance <= found.fp32_noise, found


@pytest.mark.parametrize("name", ["fp32_baseline", "bf16_fp32_reward", "fp32_bf16_kl"])
def test_golden_path_is_healthy_against_float64(name: str, h2_study: "H2Study") -> None:
    """FP32 in all that H2 runs: the one cell whose verdict is known before the measurement."""
    cell = h2_study.cell(get_configuration(name))
    assert cell.evidence.measured_against == "fp64"
    assert cell.verdict == "healthy"
    # An error of exactly 0 would say that FP32 was compared with itself.
    assert cell.metrics["advantage_rms_error"].low > 0
    assert h2_study.forwards.scored("fp64").parameters == "fp64"


def test_a_step_of_the_format_follows_from_the_scores(h2_study: "H2Study") -> None:
    """fp32 has 16 significand bits more than bf16, so its median step is 2^16 times smaller."""
    steps = [
        h2_study.cell(get_configuration(name)).metrics["reward_resolution_median"].value
        for name in ("fp32_bf16_reward", "fp32_baseline")
    ]
    # Scores of two formats may fall on different sides of a power of two.
    assert steps[0] / steps[1] in (2.0**15, 2.0**16, 2.0**17)


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
def test_storing_the_real_scores_follows_the_law(fmt: str, h2_study: "H2Study") -> None:
    """The golden scores rounded to the format: predicted from their ulps and spreads alone."""
    found = h2_study.storing(fmt)
    if found.z is None:
        pytest.skip("too few groups of this reward model have steps below half their spread")
    # The second order lowers the power by the shortfall; z is in standard errors of the power.
    assert abs(found.z) < SIGMAS, (
        f"storing in {fmt}: measured {found.measured:.4g}, law {found.predicted:.4g}, "
        f"z = {found.z:.1f} over {found.groups} of {found.of} groups"
    )


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
def test_families_follow_the_law(fmt: str) -> None:
    """Synthetic rewards with steps up to 1/2 of the spread, offsets and heavy tails.

    8,192 rewards: the power has a standard error of 3 %, so the RMS one of 1.6 %.
    """
    from precision_lib.forensics.h2 import families
    from precision_lib.forensics.h2 import operating_point as h2_points

    compared = 0
    for family in families.FAMILIES:
        if not family.smooth:
            continue
        found = h2_points.storing(*families.flat(family, fmt, seed=0), fmt)
        if found.z is None or found.groups < families.GROUPS / 2:
            continue  # beyond the law
        compared += 1
        assert abs(found.z) < SIGMAS, (family.name, found)
    assert compared >= 8


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
def test_exact_rewards_are_immune(fmt: str) -> None:
    """Rewards 0 and 1, -1 and +1, and Likert scales: an error of exactly zero."""
    from precision_lib.forensics.h2 import operating_point as h2_points

    found = h2_points.immunity(seed=0).squared_error
    mine = {name: error for name, error in found.items() if name.endswith(fmt)}
    assert len(mine) == 4
    assert not any(mine.values()), mine


def synthetic(study: "H2Study") -> SyntheticRewards:
    shown = study.cell(get_configuration("bf16_pure")).shows(H2Evidence).synthetic
    assert shown is not None
    return shown


def test_critical_offset_is_where_the_law_puts_it(h2_study: "H2Study") -> None:
    """Storing in bf16 passes the threshold within 4 spreads of the predicted power of two."""
    found = synthetic(h2_study).critical_offset_over_spread
    assert isinstance(found, CriticalOffsets)
    assert found.by_spread
    for row in found.by_spread:
        assert abs(row.measured.value - row.predicted) <= 4, row


def test_openrlhf_1334_needs_statistics_in_fp32(h2_study: "H2Study") -> None:
    """[1, 1, 1, 1.0078125], exact in bf16: mean 1 + 2^-9, deviation 2^-8."""
    example = synthetic(h2_study).openrlhf_1334_group_statistics_in_bf16
    assert example["advantages_with_fp32_statistics"] == (-0.5, -0.5, -0.5, 1.5)
    assert example["advantages_with_bf16_statistics"] == (0, 0, 0, 2)


def test_controls_are_null_and_the_hypothesis_has_a_verdict(
    h2_study: "H2Study", recorder: Recorder
) -> None:
    """FP32 repeats itself, exact rewards are immune, an irrelevant promotion changes nothing."""
    verdict = h2_study.verdict()
    recorder.add_hypothesis(verdict)
    assert verdict.control.is_null, verdict.control
