"""What the core promises of GAE and group-normalised rewards beyond the conformance tests.

What holds for everything with a mask stands in test_ppo_masked.py. B sequences, T tokens, G groups,
K samples per group.
"""

import math

import pytest
import torch
from torch import Tensor

from precision_lib import bounds, oracle
from precision_lib.formats import FORMATS, round_to
from precision_lib.ppo import gae, group_advantages, masked_mean
from tests.unit.ppo.layouts import (
    DEFAULT_FORMATS,
    FLOATS,
    everything,
    ragged,
    random,
    same_bits,
    within,
)

FP32, FP64 = FORMATS["fp32"], FORMATS["fp64"]


# The known traps


@FLOATS
@pytest.mark.parametrize("value", [0.1, 3.3, -1e-3, 1e4])
def test_equal_rewards_have_no_advantage(dtype: torch.dtype, value: float) -> None:
    """0.1 is not representable: a mean that is rounded leaves a residue, normalised to size 1."""
    rewards = torch.full((4, 7), value, dtype=dtype)
    nothing = torch.zeros(4, 7, dtype=torch.promote_types(dtype, torch.float32))
    same_bits(got=group_advantages(rewards).abs(), want=nothing)  # -0 will do


@pytest.mark.parametrize("mean", [1e3, 1e6, -1.6e7])
def test_a_large_mean_costs_no_digit(mean: float) -> None:
    """As of whiten: float64 inside, rounded to FP32 once."""
    x = (random(3, 300) * 8).round() / 8 + mean
    want = torch.from_numpy(oracle.group_advantages(x.double().numpy()))
    limit = bounds.group_advantages_bound(x, FP64)
    rounding = bounds.rounding_bound(want.abs() + limit, FP32)
    within(got=group_advantages(x), want=want, limit=limit + rounding)


def test_bf16_sums_go_beyond_256() -> None:
    """A thousand rewards of 1, undiscounted: 1000, 999, ..., 1, which bf16 cannot hold."""
    rewards = torch.ones(1, 1000, dtype=torch.bfloat16)
    to_go, _ = gae(rewards, torch.zeros_like(rewards), everything(1, 1000), 1.0, 1.0)
    same_bits(got=to_go, want=torch.arange(1000.0, 0, -1)[None])
    same_bits(got=masked_mean(to_go, everything(1, 1000)), want=torch.tensor(500.5))


@pytest.mark.parametrize("exponent", [-110, -60, 60, 110])
def test_a_power_of_two_is_not_seen(exponent: int) -> None:
    x = random(2, 40)
    scaled = torch.ldexp(x, torch.tensor(exponent))
    same_bits(got=group_advantages(scaled), want=group_advantages(x))


def test_openrlhf_case_keeps_its_small_differences() -> None:
    """Three equal bf16 rewards and one a bit larger: -1/2, -1/2, -1/2, 3/2."""
    rewards = torch.tensor([[1, 1, 1, 1.0078125]], dtype=torch.bfloat16)
    same_bits(got=group_advantages(rewards), want=torch.tensor([[-0.5, -0.5, -0.5, 1.5]]))


# Formats


@pytest.mark.parametrize(("one", "other", "want"), DEFAULT_FORMATS, ids=str)
def test_results_are_fp32_or_wider(one: torch.dtype, other: torch.dtype, want: torch.dtype) -> None:
    x, y, mask = random(2, 5).to(one), random(2, 5, seed=1).to(other), ragged(5, 2)
    assert [a.dtype for a in gae(x, y, mask, 0.9, 0.9)] == [want, want]
    assert group_advantages(x).dtype == torch.promote_types(one, torch.float32)


def test_float64_keeps_float64() -> None:
    x = random(2, 30).double() + 2.0**-40
    for rewards, dtype in ((x, None), (x.float(), torch.float64)):
        got = group_advantages(rewards, dtype)
        assert got.dtype == torch.float64
        want = torch.from_numpy(oracle.group_advantages(rewards.double().numpy()))
        within(got=got, want=want, limit=bounds.group_advantages_bound(rewards, FP64))


def test_group_advantages_in_bf16_round_the_mean_away() -> None:
    """Every operation rounds to bf16: the mean of the OpenRLHF case is 1, three samples get 0."""
    bf16 = FORMATS["bf16"]
    rewards = torch.tensor([[1, 1, 1, 1.0078125]])
    got = group_advantages(rewards, torch.bfloat16)
    assert got.dtype == torch.bfloat16

    def rounded(x: Tensor) -> Tensor:
        return round_to(x, bf16)

    mean = rounded(rounded(rewards.double().sum()) / 4)
    centred = rounded(rewards.double() - mean)
    variance = rounded(rounded(rounded(centred.square()).sum()) / 3)
    want = rounded(centred / rounded(variance.sqrt()))
    same_bits(got=got.double(), want=want)
    assert want[0, :3].tolist() == [0, 0, 0]
    assert want[0, 3] > 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_rewards_may_become_noise_in_a_format_asked_for(dtype: torch.dtype) -> None:
    """The mean of 7 equal numbers is rounded, and the residue divided by its own size."""
    values = torch.linspace(0.1, 3.3, 100, dtype=dtype).tolist()
    rewards = [torch.full((1, 7), value, dtype=dtype) for value in values]
    assert any(group_advantages(group, dtype).any() for group in rewards)
    assert not any(group_advantages(group).any() for group in rewards)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_gae_in_16_bits_rounds_every_operation(name: str) -> None:
    fmt = FORMATS[name]
    rewards, values = random(2, 50, 2)
    got, returns = gae(rewards, values, everything(50, 2), 0.5, 0.5, fmt.dtype)
    assert got.dtype == returns.dtype == fmt.dtype
    r, v = round_to(rewards, fmt), round_to(values, fmt)
    last = round_to(r[:, 1] - v[:, 1], fmt)
    first = round_to(round_to(r[:, 0] - v[:, 0], fmt) + 0.5 * v[:, 1], fmt)  # a product with 2^-k
    want = torch.stack([round_to(first + 0.25 * last, fmt), last], -1)  # is exact
    same_bits(got=got.double(), want=want)
    same_bits(got=returns.double(), want=round_to(want + v, fmt))


def test_gae_in_fp16_overflows_where_fp16_does() -> None:
    rewards = torch.full((1, 1000), 100.0)
    got, _ = gae(rewards, torch.zeros_like(rewards), everything(1, 1000), 1.0, 1.0, torch.float16)
    assert got[0, 0] == math.inf
    assert torch.isfinite(got[0, 500:]).all()


def test_gae_in_bf16_stops_decaying_like_the_recursion_in_bf16() -> None:
    """A_t = 1 + 0.999 A_(t+1) in bf16 stays at 256, where 0.999 A + 1 rounds to A; 983 is right."""
    rewards = torch.ones(1, 4096)
    carry = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(4096):
        carry = 1 + 0.999 * carry
    got, _ = gae(
        rewards, torch.zeros_like(rewards), everything(1, 4096), 0.999, 1.0, torch.bfloat16
    )
    same_bits(got=got[0, 0], want=carry)


# Generalised advantage estimation


def loop(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """The recursion from the last token to the first, sequence by sequence, in float64."""
    advantages = torch.zeros(mask.shape, dtype=torch.float64)
    for b in range(len(mask)):
        real = int(mask[b].sum())
        v = [*values[b, :real].double().tolist(), 0.0]
        carry = 0.0
        for t in range(real - 1, -1, -1):
            carry = float(rewards[b, t]) + gamma * v[t + 1] - v[t] + gamma * lam * carry
            advantages[b, t] = carry
    return advantages, torch.where(mask, advantages + values.double(), 0)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 8, 9, 31, 64, 65, 100])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.7)])
def test_gae_agrees_with_a_backward_loop(length: int, gamma: float, lam: float) -> None:
    """In float64 the loop and the scan both err: twice the bound; FP32 rounds that once."""
    mask = ragged(length, length // 2, 0, 1, length)
    rewards, values = random(2, *mask.shape)
    inputs = (rewards, values, mask, gamma, lam)
    wide = gae(rewards.double(), values.double(), mask, gamma, lam)
    limits = bounds.gae_bound(*inputs, FP64)
    for got, in_fp64, want, bound in zip(gae(*inputs), wide, loop(*inputs), limits, strict=True):
        within(got=in_fp64, want=want, limit=2 * bound)
        rounding = bounds.rounding_bound(want.abs() + 2 * bound, FP32)
        within(got=got, want=want, limit=2 * bound + torch.where(mask, rounding, 0))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_bootstrap", [False, True])
def test_a_hole_in_the_mask_is_skipped(dtype: torch.dtype | None, with_bootstrap: bool) -> None:
    """Tool output in between, left padding, no real token: each row as its real tokens alone."""
    mask = random(40, 60, seed=3) > 0.2
    mask[0], mask[1, :50] = False, False
    rewards, values = random(2, *mask.shape).masked_fill(~mask, math.nan)
    bootstrap = random(len(mask), seed=4) if with_bootstrap else None
    got = gae(rewards, values, mask, 0.9, 0.8, dtype, bootstrap)
    for b, real in enumerate(mask):
        last = None if bootstrap is None else bootstrap[b : b + 1]
        r, v, tokens = (x[b : b + 1, real] for x in (rewards, values, mask))
        alone = gae(r, v, tokens, 0.9, 0.8, dtype, last)
        for one, want in zip(got, alone, strict=True):
            assert torch.equal(one[b, real], want[0])
            assert not one[b, ~real].any()


def test_undiscounted_gae_is_reward_to_go_minus_value() -> None:
    """Small integers: exact, so no tolerance."""
    mask = ragged(37, 20, 1, 0)
    rewards, values = (random(2, *mask.shape) * 5).round()
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = torch.where(mask, rewards, 0).flip(-1).cumsum(-1).flip(-1) * mask
    assert torch.equal(returns, to_go)
    assert torch.equal(advantages, to_go - torch.where(mask, values, 0))


def test_gae_with_lam_0_is_the_td_error() -> None:
    """gamma = 1/2 on small integers: exact."""
    mask = ragged(9, 4, 1)
    rewards, values = (random(2, *mask.shape) * 5).round()
    advantages, _ = gae(rewards, values, mask, gamma=0.5, lam=0.0)
    v = torch.nn.functional.pad(torch.where(mask, values, 0), (0, 1))
    assert torch.equal(advantages, torch.where(mask, rewards + 0.5 * v[:, 1:] - v[:, :-1], 0))


def test_one_token_has_its_reward_minus_its_value() -> None:
    advantages, returns = gae(
        torch.tensor([[3.0]]), torch.tensor([[5.0]]), everything(1, 1), 0.9, 0.9
    )
    assert (advantages.item(), returns.item()) == (-2.0, 3.0)


def test_advantages_carry_no_gradient() -> None:
    x = random(2, 4).requires_grad_()
    results = [group_advantages(x), *gae(x, x, everything(2, 4), 1, 1)]
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_not_hidden(reward: float) -> None:
    got = group_advantages(torch.tensor([[reward, 0.0, 1.0], [0.0, 1.0, 2.0]]))
    assert got[0].isnan().any()
    same_bits(got=got[1], want=torch.tensor([-1.0, 0.0, 1.0]))


# Bit for bit


def test_the_order_of_groups_changes_no_bit_nor_does_company() -> None:
    rewards = random(5, 7)
    want = group_advantages(rewards)
    order = torch.tensor([4, 2, 0, 1, 3])
    same_bits(got=group_advantages(rewards[order]), want=want[order])
    same_bits(got=group_advantages(rewards[1:2]), want=want[1:2])


# Empty input


def test_no_groups_give_no_advantages() -> None:
    assert group_advantages(torch.zeros(0, 3)).shape == (0, 3)
