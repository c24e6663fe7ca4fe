"""The sweep: a test for each run, one for each training-level hypothesis.

A run that fails numerically (a KL that explodes, a loss that is NaN) is a finding about its
configuration; a test fails where the run cannot be believed: it crashed, ran in other formats than
asked for, or left other steps than it says. The FP32 baseline itself has to complete.
"""

import math
from typing import TYPE_CHECKING

import pytest

from precision_lib.forensics.hypotheses import IN_SWEEPS
from precision_lib.forensics.verdicts import (
    INCONCLUSIVE,
    PARTLY,
    REFUTED,
    SUPPORTED,
)
from precision_lib.matrix import TWIN

if TYPE_CHECKING:
    from precision_lib.plugin.sweep_outcome import Outcome
    from precision_lib.sweep.plan import SweepPlan


def test_run_ends_in_the_formats_that_were_asked_for(
    outcome: "Outcome", plan: "SweepPlan", cell_name: str
) -> None:
    from precision_lib.training.failures import COMPLETED, FINAL

    assert cell_name not in outcome.record.failed, outcome.record.failed[cell_name]
    run = outcome.run(cell_name)
    assert run.status in FINAL, f"{cell_name} has not ended: {run.status}"
    if run.configuration in (TWIN.name, "fp32_baseline"):
        assert run.status == COMPLETED, run.reason
    assert run.observed_formats == run.formats
    rewards = run.curves["reward_mean"]
    assert run.last_step
    assert len(rewards) == run.last_step > 0
    if run.status == COMPLETED:
        [cell] = [c for c in plan.cells if c.name == cell_name]
        assert run.last_step == cell.settings.max_steps
        assert all(r is not None and math.isfinite(r) for r in rewards)
        assert run.evaluation is not None
        assert run.evaluation.initial.kl_per_sequence == 0
        assert run.evaluation.final.kl_per_sequence > 0


def test_seeds_begin_alike_in_every_configuration(outcome: "Outcome") -> None:
    """The same seed gives all configurations one FP32 start, so that they can be paired."""
    evaluated = [(r.seed, r.evaluation.initial) for r in outcome.record.runs if r.evaluation]
    initial = dict(evaluated)
    assert len(evaluated) > len(initial) > 0, "nothing was compared"
    for seed, start in evaluated:
        assert start == initial[seed]


@pytest.mark.parametrize("hypothesis", sorted(IN_SWEEPS))
def test_hypothesis_in_training(outcome: "Outcome", hypothesis: str) -> None:
    """The verdict is one of four, undecided where the interval says so, and the twin is null."""
    evidence = outcome.record.evidence
    assert evidence is not None, outcome.record.not_compared
    [verdict] = [v for v in evidence.hypotheses if v.hypothesis == hypothesis]
    assert verdict.verdict in (SUPPORTED, PARTLY, REFUTED, INCONCLUSIVE)
    assert verdict.control.is_null, (
        f"the twin, one rounding away from the baseline, differs from it: {verdict.control}; "
        "nothing that the sweep shows can be called precision"
    )
    assert len(evidence.seeds) > 1, "an interval over seeds takes at least two"
