"""KL penalties and the two losses of [64, 1024] against the peers: time, peak memory and error."""

from typing import Any

import pytest

from tests.benchmarks import timed
from tests.benchmarks.contenders import CONTENDERS, Contender
from tests.benchmarks.measure import clock

FORMATS = ("fp32", "bf16")


@pytest.mark.parametrize("contender", CONTENDERS["kl_penalty"], ids=lambda c: c.label)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_kl_penalty(
    contender: Contender, fmt: str, estimator: str, device: str, measure: Any
) -> None:
    measure(timed.kl_penalty(fmt, device, estimator), contender, rounds=101, iterations=20)


@pytest.mark.parametrize("contender", CONTENDERS["policy_loss"], ids=lambda c: c.label)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with_gradient"])
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_policy_loss(
    contender: Contender, fmt: str, backward: bool, device: str, measure: Any
) -> None:
    case = timed.policy_loss(fmt, device, backward=backward)
    measure(case, contender, rounds=101, iterations=5)


@pytest.mark.parametrize("contender", CONTENDERS["value_loss"], ids=lambda c: c.label)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_value_loss(contender: Contender, fmt: str, device: str, measure: Any) -> None:
    measure(timed.value_loss(fmt, device), contender, rounds=101, iterations=10)
