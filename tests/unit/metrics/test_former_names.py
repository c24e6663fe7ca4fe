"""Figures of a step under the names of release 0.1 are found, and a new name goes first."""

import numpy as np
import pytest

from precision_lib.forensics.hypotheses import DECISIONS, HYPOTHESES, IN_SWEEPS
from precision_lib.metrics.former_names import FORMER, figure
from precision_lib.sweep.curves import _column


@pytest.mark.parametrize("name", FORMER)
def test_a_former_name_is_read(name: str) -> None:
    assert figure({FORMER[name]: 0.25}, name) == 0.25
    assert figure({FORMER[name]: 0.25, name: 0.5}, name) == 0.5
    assert figure({"reward_mean": 1.0}, name) is None


def test_a_curve_of_old_and_new_lines_has_no_gap() -> None:
    lines = [{"advantage_rms_error": 0.25}, {"gae_rms_error": 0.5}, {}]
    np.testing.assert_array_equal(_column(lines, "gae_rms_error"), [0.25, 0.5, np.nan])


def test_no_former_name_is_a_name_of_a_step_any_more() -> None:
    """Every one of them is a metric of the main job, and only that."""
    metrics = {name for h in HYPOTHESES.values() for name in h.metrics}
    assert set(FORMER.values()) <= metrics
    assert not set(FORMER) & metrics
    assert {h.in_training for h in IN_SWEEPS.values()} == {
        "log_ratio_nsr",
        "gae_rms_error",
        "accum_err_final",
    }
    assert DECISIONS["H1"].metric == HYPOTHESES["H1"].in_training
