"""What the core promises of the KL over the whole vocabulary.

B sequences, T tokens, V vocabulary entries.
"""

import math

import pytest
import torch

from precision_lib.formats import FORMATS
from precision_lib.ppo.kl import full_kl
from tests.benchmarks.measure import peak_mib
from tests.unit.ppo.layouts import (
    FLOATS,
    random,
    same_bits,
    within,
)

FP64 = FORMATS["fp64"]


def test_full_kl_of_two_outcomes_by_hand() -> None:
    """(1/2, 1/2) against (1/4, 3/4): log 2 / 2 + log(2/3) / 2, and the other way round not."""
    p, q = torch.zeros(1, 2), torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    halves = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    quarters = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    limit = 8 * 2 * FP64.unit_roundoff  # two terms below 1, each a few roundings
    for got, want in ((full_kl(p.double(), q), halves), (full_kl(q, p.double()), quarters)):
        within(got=got, want=torch.tensor([want], dtype=torch.float64), limit=limit)


@FLOATS
def test_full_kl_agrees_with_its_definition(dtype: torch.dtype) -> None:
    p, q = random(2, 5, 11).to(dtype), (random(2, 5, 11, seed=1) * 0.5).to(dtype)
    want = torch.nn.functional.kl_div(
        torch.log_softmax(q.double(), -1),
        torch.log_softmax(p.double(), -1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    # 11 terms of size at most 20 in float64, each within a few ulp.
    limit = 11 * 20 * 8 * FP64.unit_roundoff
    got = full_kl(p, q)
    assert got.dtype == torch.float64
    within(got=got, want=want, limit=limit)
    assert (got >= -limit).all()
    same_bits(got=full_kl(p, p), want=torch.zeros(2, 5, dtype=torch.float64))


def test_full_kl_of_a_zero_probability() -> None:
    """Of the policy: contributes nothing. Of the reference alone: infinite."""
    p, q = random(2, 5, 11), random(2, 5, 11, seed=1)
    p[0, 0, 0] = -math.inf
    q[0, 1, 0] = -math.inf
    p[0, 2, 0] = q[0, 2, 0] = -math.inf
    got = full_kl(p, q)
    assert got[0, 1] == math.inf
    got[0, 1] = 0
    assert torch.isfinite(got).all()
    same_bits(got=full_kl(p, p), want=torch.zeros(2, 5, dtype=torch.float64))


def test_full_kl_is_taken_row_by_row() -> None:
    """A row alone, a 4-dimensional batch, one without dimensions: the same bits, and one buffer.

    Two buffers of a MiB, two log-softmaxes of one, four more in the sum over the vocabulary.
    """
    p, q = random(2, 20, 30_000), random(2, 20, 30_000, seed=1)
    want = full_kl(p, q)
    same_bits(got=full_kl(p[1:, 3:5], q[1:, 3:5]), want=want[1:, 3:5])
    same_bits(got=full_kl(p.view(2, 4, 5, -1), q.view(2, 4, 5, -1)), want=want.view(2, 4, 5))
    same_bits(got=full_kl(p[0, 0], q[0, 0]), want=want[0, 0])
    assert 0 < peak_mib(lambda: full_kl(p, q), "cpu") <= 8
    assert not full_kl(p.requires_grad_(), q).requires_grad


@pytest.mark.parametrize("content", [math.nan, math.inf])
def test_full_kl_does_not_hide_logits_of_the_policy_that_are_not_finite(content: float) -> None:
    p = random(1, 2, 5)
    p[0, 0, 3] = content
    got = full_kl(p, random(1, 2, 5, seed=1))
    assert got[0, 0].isnan()
    assert torch.isfinite(got[0, 1])


def test_full_kl_of_no_rows_is_empty() -> None:
    assert full_kl(torch.zeros(0, 3, 5), torch.zeros(0, 3, 5)).shape == (0, 3)
