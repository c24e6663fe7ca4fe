"""GAE and whitening of [64, 1024] against the peers: time, peak memory and error."""

from typing import Any

import pytest

from tests.benchmarks import timed
from tests.benchmarks.contenders import CONTENDERS, Contender
from tests.benchmarks.measure import clock

FORMATS = ("fp32", "bf16")


@pytest.mark.parametrize("contender", CONTENDERS["gae"], ids=lambda c: c.label)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_gae(contender: Contender, fmt: str, device: str, measure: Any) -> None:
    measure(timed.gae(fmt, device), contender, rounds=31)


@pytest.mark.parametrize("contender", CONTENDERS["whiten"], ids=lambda c: c.label)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_whiten(contender: Contender, fmt: str, device: str, measure: Any) -> None:
    measure(timed.whiten(fmt, device), contender, rounds=101, iterations=10)
