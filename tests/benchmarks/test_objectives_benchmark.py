"""Today's objectives: time, peak memory and error beside the peers and plain torch."""

from typing import Any

import pytest

from tests.benchmarks import timed
from tests.benchmarks.contenders import CONTENDERS, Contender
from tests.benchmarks.measure import clock

FORMATS = ("fp32", "bf16")
LARGE = {"jsd": timed.jsd, "linear_token_logprobs": timed.linear_token_logprobs}


def _named(names: Any) -> list[Any]:
    return [
        pytest.param(name, contender, id=f"{name}-{contender.label}")
        for name in names
        for contender in CONTENDERS[name]
    ]


@pytest.mark.parametrize(("name", "contender"), _named(timed.OBJECTIVES))
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_objective(name: str, contender: Contender, fmt: str, device: str, measure: Any) -> None:
    iterations = 1 if name in ("gae_with_bootstrap", "rloo_advantages") else 5
    measure(timed.OBJECTIVES[name](fmt, device), contender, rounds=31, iterations=iterations)


@pytest.mark.parametrize(("name", "contender"), _named(LARGE))
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_over_the_vocabulary(
    name: str, contender: Contender, fmt: str, device: str, measure: Any
) -> None:
    measure(LARGE[name](fmt, device), contender, rounds=5, iterations=1)
