"""Today's objectives in the core: known traps, what is refused, memory of linear log-probs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib import ppo
from precision_lib.ppo import linear_logprobs
from tests.unit.ppo.layouts import within

ONE = torch.ones(1, 1, dtype=torch.bool)
PAIR = torch.ones(1, 2, dtype=torch.bool)
CLIPS: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}


def with_gradient(function: Callable[..., Tensor], x: Tensor, *rest: Any, **options: Any) -> Any:
    """(value, gradient in the first argument)."""
    leaf = x.detach().clone().requires_grad_()
    value = function(leaf, *rest, **options)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


# aggregate


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("token_mean", (4 + 3) / 4),
        ("sequence_mean", (4 + 1) / 2),
        ("sequence_mean_token_sum", (4 + 3) / 2),
    ],
)
def test_the_modes_weigh_tokens_as_they_say(mode: str, want: float) -> None:
    mask = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    values = torch.where(mask, torch.tensor([[4.0], [1.0], [7.0]]), torch.nan)
    assert ppo.aggregate(values, mask, mode).item() == want
    assert ppo.aggregate(values, mask, mode, 14.0).item() == pytest.approx(
        want * (4 if mode == "token_mean" else 2) / 14
    )


def test_parts_with_the_denominator_of_the_whole_add_up() -> None:
    """Losses of 4 on one token and of 1 on three: 1.75, where the mean of the means is 2.5."""
    whole = torch.tensor([[4.0, 1.0, 1.0, 1.0]])
    parts = whole.split([1, 3], dim=1)
    masks = [torch.ones_like(part, dtype=torch.bool) for part in parts]
    pairs = list(zip(parts, masks, strict=True))
    assert sum(ppo.aggregate(x, m, "token_mean", 4.0).item() for x, m in pairs) == 1.75
    assert sum(ppo.aggregate(x, m, "token_mean").item() for x, m in pairs) / 2 == 2.5


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "sequence_mean_token_sum"])
def test_nothing_is_aggregated_to_zero(mode: str) -> None:
    value, gradient = with_gradient(
        ppo.aggregate, torch.full((2, 3), torch.nan), ~ONE.expand(2, 3), mode
    )
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros(2, 3))


# ratios and weights


def test_a_small_drift_is_no_small_weight() -> None:
    """-0.01 on each of 300 tokens: 0.99 as a geometric mean, 0.05 as a product."""
    old = torch.zeros(1, 300)
    new, mask = old - 0.01, torch.ones(1, 300, dtype=torch.bool)
    assert ppo.sequence_ratio(new, old, mask).item() == pytest.approx(math.exp(-0.01))
    weight = {
        level: ppo.importance_weights(new, old, mask, level, "truncate", 2.0)[0, 0].item()
        for level in ("token", "sequence", "geometric")
    }
    assert weight["token"] == weight["geometric"] == pytest.approx(math.exp(-0.01))
    assert weight["sequence"] == pytest.approx(math.exp(-3), rel=5 * 2.0**-24)


def test_a_rejected_infinite_weight_is_zero_and_a_nan_stays() -> None:
    new, old = torch.tensor([[0.0, torch.nan, -1.0]]), torch.tensor([[-800.0, -1.0, torch.nan]])
    mask = torch.tensor([[True, True, False]])
    kept = ppo.importance_weights(new, old, mask, "token", "mask", 2.0)
    cut = ppo.importance_weights(new, old, mask, "token", "truncate", 2.0)
    assert kept[0, 0] == 0
    assert cut[0, 0] == 2
    for weight in (kept, cut):
        assert weight[0, 1].isnan()
        assert weight[0, 2] == 0
        assert not weight.requires_grad


# clipped objectives


@pytest.mark.parametrize("name", ["gspo_loss", "dapo_loss", "cispo_loss"])
def test_a_far_ratio_behind_the_clip_has_a_finite_gradient(name: str) -> None:
    advantages = torch.ones(1) if name == "gspo_loss" else torch.ones(1, 1)
    new, old = torch.tensor([[-0.5]]), torch.tensor([[-100.5]])
    loss, gradient = with_gradient(getattr(ppo, name), new, old, advantages, ONE, **CLIPS)
    want = {"gspo_loss": (-1.28, 0), "dapo_loss": (-1.28, 0), "cispo_loss": (0.64, -1.28)}[name]
    assert (loss.item(), gradient.item()) == pytest.approx(want)


def test_the_dual_clip_holds_a_harmful_token() -> None:
    given = torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), torch.tensor([[-2.0]]), ONE
    plain, steep = with_gradient(ppo.dapo_loss, *given, **CLIPS)
    held, flat = with_gradient(ppo.dapo_loss, *given, **CLIPS, dual_clip=3.0)
    assert plain.item() == pytest.approx(2 * math.exp(2))
    assert steep.item() == pytest.approx(2 * math.exp(2))
    assert (held.item(), flat.item()) == (6, 0)


def test_dapo_with_equal_clips_is_ppo() -> None:
    draw = torch.Generator().manual_seed(1)
    old, noise, advantages = (torch.randn(4, 9, generator=draw) for _ in range(3))
    mask = torch.rand(4, 9, generator=draw) < 0.7
    new = old + 0.3 * noise
    ours = with_gradient(ppo.dapo_loss, new, old, advantages, mask, 0.2, 0.2)
    for got, want in zip(
        ours, with_gradient(ppo.policy_loss, new, old, advantages, mask, 0.2), strict=True
    ):
        assert torch.equal(got, want)


def test_gspo_on_sequences_of_one_token_is_ppo() -> None:
    draw = torch.Generator().manual_seed(2)
    old, noise, advantages = (torch.randn(8, 1, generator=draw) for _ in range(3))
    new, mask = old + 0.3 * noise, ONE.expand(8, 1)
    gspo = with_gradient(ppo.gspo_loss, new, old, advantages[:, 0], mask, 0.2, 0.2)
    for got, want in zip(
        gspo, with_gradient(ppo.policy_loss, new, old, advantages, mask, 0.2), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=2**-22, atol=0)


# log-probs from hidden states


def _linear(
    seed: int = 0, rows: int = 6, width: int = 8, size: int = 37
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, rows // 2, width, generator=draw, dtype=torch.float64)
    weight = torch.randn(size, width, generator=draw, dtype=torch.float64)
    return hidden, weight, torch.randint(0, size, (2, rows // 2), generator=draw)


@pytest.mark.parametrize(("block", "rows"), [(2**22, 1024), (100, 1024), (64, 2)])
def test_blocks_change_nothing(block: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linear_logprobs._BLOCK_BYTES, "cpu", block)
    monkeypatch.setattr(linear_logprobs, "_ROWS", rows)
    hidden, weight, tokens = _linear()
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    up = torch.tensor([[1.0, 0.0, -2.0], [0.5, 3.0, 0.0]], dtype=torch.float64)
    got = ppo.linear_token_logprobs(*leaves, tokens, 0.7)
    logits = hidden @ weight.T / 0.7
    want = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    # On either side products over 8 states, a sum over 37 entries, and in the backward pass 6 rows.
    roundings = 2 * (8 + 37 + 6) * 2.0**-53
    size = float((hidden.abs() @ weight.abs().T).detach().max()) / 0.7
    within(got=got, want=want, limit=roundings * size)
    factor = float(up.abs().sum()) * float(max(x.detach().abs().max() for x in leaves)) / 0.7
    for mine, theirs in zip(
        torch.autograd.grad(got, leaves, up), torch.autograd.grad(want, leaves, up), strict=True
    ):
        within(got=mine, want=theirs, limit=roundings * (1 + size) * factor)


def test_a_slot_without_an_upstream_gradient_adds_nothing_whatever_it_holds() -> None:
    hidden, weight, tokens = _linear()
    with torch.no_grad():
        hidden[1, 2] = torch.nan
    leaves = hidden.float().requires_grad_(), weight.float().requires_grad_()
    up = torch.ones(2, 3)
    up[1, 2] = 0
    gradients = torch.autograd.grad(ppo.linear_token_logprobs(*leaves, tokens), leaves, up)
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert torch.equal(gradients[0][1, 2], torch.zeros(8))


def test_autocast_does_not_change_the_logprobs() -> None:
    hidden, weight, tokens = _linear()
    given = hidden.float(), weight.float(), tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ppo.linear_token_logprobs(*given)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, ppo.linear_token_logprobs(*given))


def test_no_logits_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of more than a block is made of 64 rows and 2,048 entries."""
    monkeypatch.setitem(linear_logprobs._BLOCK_BYTES, "cpu", 2**12)
    monkeypatch.setattr(linear_logprobs, "_ROWS", 16)
    largest: list[int] = []
    original = linear_logprobs._Blocks.logits

    def watched(self: Any, states: Tensor, block: Tensor) -> Tensor:
        z = original(self, states, block)
        largest.append(z.numel())
        return z

    monkeypatch.setattr(linear_logprobs._Blocks, "logits", watched)
    hidden, weight, tokens = _linear(rows=64, size=2048)
    leaf = hidden.float().requires_grad_()
    ppo.linear_token_logprobs(leaf, weight.float(), tokens).sum().backward()
    assert max(largest) * 4 <= 2**12
    assert sum(largest) == 2 * 64 * 2048


# temperature, bootstrap, leave-one-out, preferences, divergences


def test_a_temperature_divides_the_logits() -> None:
    logits, tokens = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[0]])
    got, gradient = with_gradient(ppo.token_logprobs, logits, tokens, temperature=2.0)
    assert got.item() == pytest.approx(-math.log1p(math.exp(-1)))
    assert gradient[0, 0, 0].item() == pytest.approx((1 - 1 / (1 + math.exp(-1))) / 2)


def test_a_response_that_was_cut_off_is_worth_its_bootstrap() -> None:
    rewards, mask = torch.zeros(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    value = torch.tensor([8.0, torch.nan])
    advantages, returns = ppo.gae(rewards, rewards, mask, 0.5, 1.0, bootstrap=value)
    assert returns.tolist() == advantages.tolist() == [[2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


def test_leave_one_out_is_exact_for_equal_rewards_and_needs_two() -> None:
    assert ppo.rloo_advantages(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[-3.0, -1.5, 4.5]]
    assert not ppo.rloo_advantages(torch.full((1, 7), 0.95)).any()


def test_a_pair_that_the_policy_orders_wrongly_has_a_finite_loss() -> None:
    zero = torch.zeros(2)
    loss, gradient = with_gradient(
        ppo.dpo_loss, torch.tensor([-1000.0, 1000.0]), zero, zero, zero, 1.0
    )
    assert loss.item() == 500
    assert gradient.tolist() == [-0.5, 0.0]


def test_identical_models_have_no_divergence_and_opposite_ones_all_of_it() -> None:
    near = torch.randn(1, 2, 9, generator=torch.Generator().manual_seed(3))
    value, gradient = with_gradient(ppo.jsd, near, near, 0.3)
    assert not value.any()
    assert not gradient.any()
    left, right = torch.tensor([[[0.0, -torch.inf]]]), torch.tensor([[[-torch.inf, 0.0]]])
    assert ppo.jsd(left, right, 0.5).item() == pytest.approx(math.log(2))
