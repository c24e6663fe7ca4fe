"""Every wrong core is caught by the check that names it, and a correct one by none.

``precision-forensics self-test`` plants the same faults; the clean cases stand here alone.
"""

import pytest
import torch
from hypothesis import Phase, settings

from precision_lib import ppo
from precision_lib.conformance.checks import Check, checks, find_check
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.profiles import CI, QUICK
from precision_lib.conformance.properties import Function
from precision_lib.conformance.runner import run
from precision_lib.faults import FAULTS, wrong_core
from precision_lib.targets import INTERFACE
from precision_lib.targets.objectives import OBJECTIVES, base, with_options
from tests.selftest.cores import naive_torch_fp64, numpy_float64, plain_torch_fp32
from tests.selftest.cores.fp32_numpy import fp32_compensated, fp32_online_softmax, fp32_pairwise
from tests.selftest.cores.plain_torch import PlainTorch

#: The examples of the ci profile; a failing one need not be made smaller.
PROFILE = settings(CI, phases=[phase for phase in CI.phases if phase is not Phase.shrink])
FIRST_LOOK = settings(QUICK, phases=PROFILE.phases)
CAUGHT_BY = {name: fault.caught_by for name, fault in FAULTS.items() if fault.caught_by}
CORRECT = {
    "numpy_float64": numpy_float64,
    "naive_torch_fp64": naive_torch_fp64,
    "fp32_pairwise": fp32_pairwise,
    "fp32_compensated": fp32_compensated,
    "fp32_online_softmax": fp32_online_softmax,
    "plain_torch_fp32": plain_torch_fp32,
}
CORRECT_OBJECTIVES = {
    "objectives_fp64": PlainTorch(torch.float64),
    "objectives_fp32": PlainTorch(torch.float32),
}
PAIRS = [
    *((core, name) for core in CORRECT for name in INTERFACE),
    *((core, name) for core in CORRECT_OBJECTIVES for name in OBJECTIVES),
]


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_a_wrong_core_is_caught_by_the_check_that_names_it(name: str) -> None:
    check = find_check(CAUGHT_BY[name])
    function = FAULTS[name].function
    assert base(check.function) == function
    with pytest.raises(ConformanceFailure) as failure:
        run(check, getattr(wrong_core(name), function), PROFILE)
    assert "compared nothing" not in str(failure.value)


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_a_first_look_catches_it_too_by_that_check_or_another(name: str) -> None:
    function = getattr(wrong_core(name), FAULTS[name].function)
    offered = with_options({FAULTS[name].function: function})
    mine = [check for check in checks() if check.function in offered]
    mine.sort(key=lambda check: check.name != CAUGHT_BY[name])
    assert any(_fails(check, function) for check in mine)


def _fails(check: Check, function: Function) -> bool:
    try:
        run(check, function, FIRST_LOOK)
    except ConformanceFailure:
        return True
    return False


@pytest.mark.parametrize("name", sorted(set(CAUGHT_BY.values())))
def test_the_built_in_core_passes_the_very_same_check(name: str) -> None:
    check = find_check(name)
    assert run(check, getattr(ppo, base(check.function)), PROFILE).compared > 0


@pytest.mark.parametrize(("core", "function"), PAIRS)
def test_a_correct_core_raises_no_false_alarm(core: str, function: str) -> None:
    """Where a run can come; at the ends of the range an FP32 core may fail."""
    mine = [
        c for c in checks() if c.function == function and c.severity != "range" and not c.is_note
    ]
    assert mine
    few = settings(PROFILE, max_examples=12)
    alarms = []
    for check in mine:
        try:
            run(check, getattr((CORRECT | CORRECT_OBJECTIVES)[core], base(function)), few)
        except ConformanceFailure as failure:
            alarms.append(f"{check.name}: {failure}")
    assert not alarms, "\n".join(alarms)
