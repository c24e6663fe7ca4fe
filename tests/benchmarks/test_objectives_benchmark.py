"""Today's objectives: time, peak memory and error beside plain torch."""

from typing import Any

import pytest

from tests.benchmarks import timed
from tests.benchmarks.contenders import CONTENDERS, Contender
from tests.benchmarks.measure import clock

FORMATS = ("fp32", "bf16")
CLIPPED = [
    pytest.param(name, contender, id=f"{name}-{contender.label}")
    for name in ("dapo_loss", "gspo_loss", "cispo_loss")
    for contender in CONTENDERS[name]
]


@pytest.mark.parametrize(("name", "contender"), CLIPPED)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_clipped_loss(name: str, contender: Contender, fmt: str, device: str, measure: Any) -> None:
    measure(timed.clipped(name, fmt, device), contender, rounds=101, iterations=5)


@pytest.mark.parametrize("contender", CONTENDERS["linear_token_logprobs"], ids=lambda c: c.label)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_linear_token_logprobs(contender: Contender, fmt: str, device: str, measure: Any) -> None:
    measure(timed.linear_token_logprobs(fmt, device), contender, rounds=5, iterations=1)
