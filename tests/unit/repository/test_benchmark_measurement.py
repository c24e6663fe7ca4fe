"""The benchmarks' own instruments: memory and error. A wrong one would flatter somebody."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmarks import measure, timed
from tests.benchmarks.accuracy import error_over_limit, share
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.measure import MIB, peak_mib

CASES = {
    "kl_penalty": lambda fmt: timed.kl_penalty(fmt, "cpu", "k3"),
    "whiten": lambda fmt: timed.whiten(fmt, "cpu"),
    "gae": lambda fmt: timed.gae(fmt, "cpu"),
    "policy_loss": lambda fmt: timed.policy_loss(fmt, "cpu", backward=True),
    "value_loss": lambda fmt: timed.value_loss(fmt, "cpu"),
    **{
        name: lambda fmt, make=make: make(fmt, "cpu")  # type: ignore[misc]
        for name, make in timed.OBJECTIVES.items()
    },
}


def test_peak_memory_is_the_largest_sum_and_not_the_total() -> None:
    def two_after_another() -> None:
        for _ in range(2):
            buffer = torch.zeros(4 * MIB // 4)
            del buffer

    def two_at_once() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(4 * MIB // 4), torch.zeros(4 * MIB // 4)

    slack = 0.1  # python's own objects, counted with numpy's
    assert 4 <= peak_mib(two_after_another, "cpu") <= 4 + slack
    assert 8 <= peak_mib(two_at_once, "cpu") <= 8 + slack
    assert 4 <= peak_mib(lambda: np.zeros(4 * MIB, dtype=np.uint8), "cpu") <= 4 + slack


def test_peak_memory_is_taken_without_the_warning_of_torch_2_11(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Warning211(torch.profiler.profile):
        def __init__(self, *, acc_events: bool = False, **options: Any) -> None:
            if not acc_events:
                raise UserWarning("Profiler clears events at the end of each cycle")
            super().__init__(acc_events=acc_events, **options)

    monkeypatch.setattr(measure, "profile", Warning211)
    assert peak_mib(lambda: torch.zeros(4 * MIB // 4), "cpu") >= 4


@pytest.mark.parametrize(
    ("got", "limit", "want"),
    [
        (1.0, 0.0, 0.0),  # no error, none allowed
        (1.5, 0.5, 1.0),  # exactly at the limit
        (1.5, 0.0, np.inf),
        (np.nan, 1.0, np.inf),
        (np.inf, 1.0, np.inf),
    ],
)
def test_share_of_the_limit(got: float, limit: float, want: float) -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert share(got * one, one, limit * one) == want


def test_share_of_nothing_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no element was compared"):
        share(*[torch.zeros(0)] * 3)


@pytest.mark.parametrize("fmt", ["fp32", "bf16"])
@pytest.mark.parametrize("function", CASES)
def test_the_core_is_accurate_and_an_error_of_one_percent_is_seen(function: str, fmt: str) -> None:
    """As the benchmarks measure it, on the slice that they use."""
    case = CASES[function](fmt).slice
    [ours] = [c for c in CONTENDERS[function] if c.kind == "ours"]
    result, gradient = timed.step(ours.bind(SimpleNamespace(**case.inputs)), case)()
    assert error_over_limit(case, result, gradient) <= 1
    wrong = tuple(1.01 * x for x in result) if isinstance(result, tuple) else 1.01 * result
    assert error_over_limit(case, wrong, gradient) > 1
    if gradient is not None:
        assert error_over_limit(case, result, 1.01 * gradient) > 1
