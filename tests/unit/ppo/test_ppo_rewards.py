"""What the core promises of rewards per token. B sequences, T tokens."""

import math

import pytest
import torch

from precision_lib.formats import FORMATS, round_to
from precision_lib.ppo.rewards import assemble_rewards
from tests.unit.ppo.layouts import (
    DEFAULT_FORMATS,
    ragged,
    random,
    same_bits,
)

MASK = ragged(5, 2, 1, 4)
#: Binary fractions with few bits: every sum and product here is exact.
SCORES = torch.tensor([1.0, -2.0, 8.0, 0.0])
KL = (random(4, 5) * 16).round() / 16


def test_the_score_stands_at_the_last_real_token_and_nowhere_else() -> None:
    got = assemble_rewards(SCORES, torch.zeros(4, 5), MASK, 0.25)
    want = torch.zeros(4, 5)
    want[[0, 1, 2, 3], [4, 1, 0, 3]] = SCORES
    assert torch.equal(got, want)


def test_the_score_stands_at_the_last_real_token_behind_holes() -> None:
    mask = torch.tensor([[True, False, True, False], [False, True, True, True]])
    got = assemble_rewards(SCORES[:2], torch.zeros(2, 4), mask, 0.25)
    assert torch.equal(got, torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, -2]]))


def test_the_penalty_is_subtracted_from_every_real_token() -> None:
    """A policy that moves away from its reference is paid less, token by token."""
    got = assemble_rewards(torch.zeros(4), KL, MASK, 0.25)
    assert torch.equal(got, torch.where(MASK, -0.25 * KL, 0))
    assert got[0][KL[0] > 0].lt(0).all()


def test_both_add_up_at_the_last_token() -> None:
    got = assemble_rewards(SCORES, KL, MASK, 0.5)
    sums = (torch.where(MASK, -0.5 * KL, 0)).sum(-1) + SCORES
    assert torch.equal(got.sum(-1), sums)
    assert got[2, 0] == SCORES[2] - 0.5 * KL[2, 0]


def test_without_a_coefficient_only_the_score_is_left() -> None:
    got = assemble_rewards(SCORES, KL, MASK, 0.0)
    assert torch.equal(got.sum(-1), SCORES)
    assert int((got != 0).sum()) == 3  # one score is 0


@pytest.mark.parametrize("content", [math.nan, math.inf, -math.inf])
def test_the_contents_of_masked_slots_change_no_bit(content: float) -> None:
    want = assemble_rewards(SCORES, KL.masked_fill(~MASK, 0), MASK, 0.25)
    got = assemble_rewards(SCORES, KL.masked_fill(~MASK, content), MASK, 0.25)
    same_bits(got=got, want=want)
    assert (got[~MASK] == 0).all()


# Formats


@pytest.mark.parametrize(("one", "other", "want"), DEFAULT_FORMATS, ids=str)
def test_rewards_are_fp32_or_wider(one: torch.dtype, other: torch.dtype, want: torch.dtype) -> None:
    assert assemble_rewards(SCORES.to(one), KL.to(other), MASK, 0.25).dtype == want


def test_a_score_of_8_swallows_a_small_penalty_in_bf16_and_not_by_default() -> None:
    """bf16 has steps of 1/32 below 8: a penalty below half of one is gone."""
    scores, kl, mask = torch.tensor([8.0]), torch.full((1, 2), 0.15625), ragged(2)
    penalty = 0.15625 / 16
    assert penalty < 2.0**-6
    low = assemble_rewards(scores.bfloat16(), kl.bfloat16(), mask, 1 / 16, torch.bfloat16)
    same_bits(got=low, want=torch.tensor([[-penalty, 8.0]], dtype=torch.bfloat16))
    default = assemble_rewards(scores.bfloat16(), kl.bfloat16(), mask, 1 / 16)
    same_bits(got=default, want=torch.tensor([[-penalty, 8 - penalty]]))


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32", "fp64"])
def test_every_operation_rounds_to_the_format_asked_for(name: str) -> None:
    """The coefficient is 3/4: its product with a rounded KL has two bits more."""
    fmt = FORMATS[name]
    scores, kl = random(4, seed=1).double() * 8, random(4, 5, seed=2).double()
    got = assemble_rewards(scores, kl, MASK, 0.75, fmt.dtype)
    assert got.dtype == fmt.dtype
    want = torch.where(MASK, -round_to(0.75 * round_to(kl, fmt), fmt), 0)
    rows, last = torch.arange(4), MASK.sum(-1) - 1
    want[rows, last] = round_to(want[rows, last] + round_to(scores, fmt), fmt)
    assert torch.equal(got.double(), want)


def test_rewards_carry_no_gradient() -> None:
    scores, kl = SCORES.clone().requires_grad_(), KL.clone().requires_grad_()
    assert not assemble_rewards(scores, kl, MASK, 0.25).requires_grad


# Bit for bit


def test_padding_and_the_order_of_sequences_change_no_bit() -> None:
    scores, kl = random(4), random(4, 5, seed=1)
    want = assemble_rewards(scores, kl, MASK, 0.1)
    longer = torch.nn.functional.pad(kl, (0, 3), value=math.nan)
    got = assemble_rewards(scores, longer, torch.nn.functional.pad(MASK, (0, 3)), 0.1)
    same_bits(got=got[:, :5], want=want)
    assert (got[:, 5:] == 0).all()
    order = torch.tensor([3, 1, 0, 2])
    got = assemble_rewards(scores[order], kl[order], MASK[order], 0.1)
    same_bits(got=got, want=want[order])


def test_scores_may_be_a_column_of_a_table() -> None:
    table = random(4, 3)
    want = assemble_rewards(table[:, 1].contiguous(), KL, MASK, 0.1)
    same_bits(got=assemble_rewards(table[:, 1], KL, MASK, 0.1), want=want)
    same_bits(got=table, want=random(4, 3))


def test_no_sequences_give_no_rewards() -> None:
    nothing = torch.zeros(0, 3)
    assert assemble_rewards(torch.zeros(0), nothing, nothing.bool(), 0.1).shape == (0, 3)
