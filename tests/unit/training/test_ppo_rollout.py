"""A rollout: whose tokens, whose log-probs, and rewards and advantages computed by hand."""

import pytest
import torch
from torch import Tensor

from precision_lib.bounds import (
    entropy_bound,
    gae_bound,
    gamma,
    log_softmax_bound,
    whiten_bound,
)
from precision_lib.formats import FORMATS
from precision_lib.scoring.forward import trunk_and_logits
from precision_lib.training.forward import forward, sequences_of
from precision_lib.training.rollout import Experience, draw
from precision_lib.training.trainer import Run, ppo_step
from precision_lib.trajectories.batches import Sampled
from tests.unit.small_runs import NAMES, experience_of, opened, pipeline

U = FORMATS["fp32"].unit_roundoff


def responses(sampled: Sampled) -> list[tuple[int, int]]:
    """(first column of the response, one behind its last) of each sequence."""
    starts = sampled.prompt_lengths
    ends = starts + sampled.response_lengths
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def test_figures_are_those_of_each_response_token_in_its_place() -> None:
    """Against float64 from the same FP32 logits and states, found row by row and token by token."""
    with opened("fp32_baseline") as run, torch.no_grad():
        sampled = draw(run.models, run.weights.working, run.settings, 0)
        given = sequences_of(sampled, torch.device("cpu"))
        weight, bias = run.weights.head_weight.detach(), run.weights.head_bias.detach()
        got = forward(run.weights.working, given, "fp32", (weight, bias), with_entropy=True)
        hidden, logits = trunk_and_logits(run.weights.working, sampled.tokens)
    assert len({*sampled.prompt_lengths.tolist()}) > 1
    assert given.mask.sum(1).tolist() == sampled.response_lengths.tolist()
    for row, (start, end) in enumerate(responses(sampled)):
        before, chosen = logits[row, start - 1 : end - 1], sampled.tokens[row, start:end, None]
        exact, states = before.double().log_softmax(-1), hidden[row, start - 1 : end - 1].double()
        want = exact.gather(1, chosen)[:, 0]
        limit = log_softmax_bound(before, want)
        assert (error_of(got.logprobs, row, want) <= limit).all()
        assert len(want) == 1 or (error_of(got.logprobs, row, want.roll(1)) > limit).any()
        size = states.abs() @ weight.abs().double() + bias.abs()
        limit = gamma(len(weight) + 1, FORMATS["fp32"]) * size
        assert (error_of(got.values, row, states @ weight.double() + bias) <= limit).all()
        entropy = -(exact.exp() * exact).sum(-1)
        assert (error_of(got.entropy, row, entropy) <= entropy_bound(before)).all()


def error_of(got: Tensor | None, row: int, want: Tensor) -> Tensor:
    """[T] distance of a row's real tokens, which come first."""
    assert got is not None
    return (got[row, : len(want)].double() - want).abs()


def by_hand(experience: Experience, row: int, run: Run) -> tuple[list[float], list[float]]:
    """Unwhitened advantages and returns of a row, token by token, in Python's float64."""
    length = int(experience.sampled.response_lengths[row])
    values = experience.scored.values[row, :length].double().tolist()
    rewards = experience.rewards[row, :length].double().tolist()
    gamma, lam = run.settings.gamma, run.settings.lam
    advantages, following, value = [0.0] * length, 0.0, 0.0
    for t in reversed(range(length)):
        following = rewards[t] + gamma * value - values[t] + gamma * lam * following
        advantages[t], value = following, values[t]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_rewards_returns_and_advantages_are_those_computed_by_hand(name: str) -> None:
    with opened(name, gamma=0.9, lam=0.8, kl_coefficient=0.3) as run:
        ppo_step(run)  # so that policy and reference differ
        experience = experience_of(run)
    scored, mask = experience.scored, experience.given.mask
    assert not mask.all(), "without padding nothing is aligned"
    assert experience.penalty[mask].any()
    raw = torch.zeros(mask.shape, dtype=torch.float64)
    limits = gae_bound(experience.rewards, scored.values, mask, 0.9, 0.8)
    for row, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            penalty = -0.3 * float(experience.penalty[row, t])
            score = float(scored.scores[row]) if t == length - 1 else 0.0
            error = abs(float(experience.rewards[row, t]) - (penalty + score))
            assert error <= 3 * U * (abs(penalty) + abs(score)), "three roundings"
        advantages, returns = (
            torch.tensor(x, dtype=torch.float64) for x in by_hand(experience, row, run)
        )
        raw[row, :length] = advantages
        assert (error_of(experience.returns, row, returns) <= limits[1][row, :length]).all()
    white = (raw - raw[mask].mean()) / raw[mask].std()
    limit = whiten_bound(raw, mask) + limits[0].max() / raw[mask].std()
    assert ((experience.advantages - white).abs() <= limit)[mask].all()
    for padded in (experience.rewards, experience.returns, experience.advantages):
        assert (padded[~mask] == 0).all()


def test_tokens_depend_on_weights_seed_and_step_alone() -> None:
    with opened("bf16_pure") as run:
        third = draw(run.models, run.weights.working, run.settings, 3).tokens
        torch.rand(5)
        first = draw(run.models, run.weights.working, run.settings, 1).tokens
        assert not torch.equal(first, third)
        assert torch.equal(draw(run.models, run.weights.working, run.settings, 3).tokens, third)
        run.weights.master.mul_(1.5)
        assert torch.equal(draw(run.models, run.weights.working, run.settings, 3).tokens, third)
        run.weights.cast()
        assert not torch.equal(draw(run.models, run.weights.working, run.settings, 3).tokens, third)
    with opened("bf16_pure", seed=1) as run:
        assert not torch.equal(draw(run.models, run.weights.working, run.settings, 3).tokens, third)


@pytest.mark.parametrize("name", ["bf16_pure", "fp32_baseline"])
def test_a_step_changes_no_model_but_its_own(name: str) -> None:
    """Neither parameters, nor buffers, nor what wants a gradient."""

    def state() -> list[tuple[bool, bool, bytes]]:
        models = pipeline()
        return [
            (x.requires_grad, model.training, x.detach().numpy().tobytes())
            for model in (models.policy.model, models.reward.model)
            for x in [*model.parameters(), *model.buffers()]
        ]

    before = state()
    with opened(name) as run:
        ppo_step(run)
    assert state() == before


def test_old_figures_carry_no_gradient() -> None:
    with opened("fp32_baseline") as run:
        experience = experience_of(run)
    scored = [x for x in vars(experience.scored).values() if isinstance(x, Tensor)]
    others = [experience.rewards, experience.advantages, experience.returns]
    assert not any(x.requires_grad for x in (*scored, *others))
