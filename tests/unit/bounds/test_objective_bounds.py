"""The bounds of today's objectives, both ways: plain FP32 keeps them, and comes near.

That wrong cores exceed them is shown by the planted faults.
"""

import pytest
import torch
from hypothesis import Phase, settings

from precision_lib.conformance.checks import find_check
from precision_lib.conformance.profiles import CI
from precision_lib.conformance.runner import run
from precision_lib.targets.objectives import OBJECTIVES, base
from tests.selftest.cores.plain_torch import PlainTorch

CORE = PlainTorch(torch.float32)
UNSHRUNK = settings(CI, phases=[phase for phase in CI.phases if phase is not Phase.shrink])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_plain_fp32_stays_within_the_bound_and_near_it(name: str) -> None:
    check = find_check(f"test_values_are_within_their_bound[{name}-ordinary-fp32]")
    assert 0.01 < run(check, getattr(CORE, base(name)), UNSHRUNK).worst <= 1
