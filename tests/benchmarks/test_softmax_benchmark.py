"""Kernels over logits [4, 512, 32000]: time, peak memory and error against the peers.

Nothing here asserts a time; targets are evaluated in the tables (docs/benchmarks.md).
"""

from functools import lru_cache
from typing import Any

import pytest

from tests.benchmarks import timed
from tests.benchmarks.contenders import CONTENDERS, Contender
from tests.benchmarks.measure import clock

FORMATS = ("fp32", "bf16")
#: One large case at a time stays in memory.
make = lru_cache(maxsize=1)(lambda function, *a, **k: function(*a, **k))


@pytest.mark.parametrize("contender", CONTENDERS["token_logprobs"], ids=lambda c: c.label)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_token_logprobs(contender: Contender, fmt: str, device: str, measure: Any) -> None:
    measure(make(timed.token_logprobs, fmt, device), contender, rounds=11)


@pytest.mark.parametrize("contender", CONTENDERS["token_logprobs"], ids=lambda c: c.label)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_token_logprobs_with_gradient(
    contender: Contender, fmt: str, device: str, measure: Any
) -> None:
    measure(make(timed.token_logprobs, fmt, device, backward=True), contender, rounds=11)


@pytest.mark.parametrize("contender", CONTENDERS["entropy"], ids=lambda c: c.label)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.benchmark(timer=clock, disable_gc=True)
def test_entropy(contender: Contender, fmt: str, device: str, measure: Any) -> None:
    measure(make(timed.entropy, fmt, device), contender, rounds=11)
