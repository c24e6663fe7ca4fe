"""Studies of H2 on a tiny random reward model and frozen random tokens, each made once."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.forensics.h2.study import H2Study, open_h2_study
from precision_lib.models.reward_model import RewardModel, score_tokens
from precision_lib.runtime import deterministic
from precision_lib.scoring.forced import forced_rewards
from precision_lib.scoring.micro import Micro
from precision_lib.trajectories.store import Trajectories
from tests.unit.small_pipelines import random_reward

SHARDS, PROMPTS, SAMPLES, LENGTH = 3, 4, 4, 12
SEQUENCES = SHARDS * PROMPTS * SAMPLES

reward: Callable[[], RewardModel] = cache(random_reward)


def freeze(index: int) -> Trajectories:
    """Random tokens of random lengths, scored as a freeze does."""
    count, generator = PROMPTS * SAMPLES, torch.Generator().manual_seed(index)
    tokens = torch.randint(1, 64, (count, LENGTH), generator=generator)
    lengths = torch.randint(5, LENGTH + 1, (count,), generator=generator)
    tokens = torch.where(torch.arange(LENGTH) < lengths[:, None], tokens, 0)
    micro = Micro(count, torch.arange(count))
    with deterministic():
        scores, _ = forced_rewards(reward().model, tokens, lengths, micro)
    prompts = (torch.arange(PROMPTS) + 100 * index).repeat_interleave(SAMPLES)
    starts, nothing = torch.full((count,), 3), torch.zeros(count, LENGTH - 1)
    sequences = (tokens, starts, lengths - 3, prompts, tokens, lengths)
    return Trajectories(*sequences, *(nothing, nothing, nothing), rewards=scores)


@cache
def shards() -> list[Trajectories]:
    return [freeze(index) for index in range(SHARDS)]


def opened(frozen: Sequence[Trajectories] | None = None) -> H2Study:
    return open_h2_study(reward(), shards() if frozen is None else frozen, 0)


@cache
def clean() -> H2Study:
    """A study that no test changes."""
    return opened()


def with_changed_models(change: Callable[[Any, str], None]) -> H2Study:
    """A study that has ``change`` applied to the model of every forward, with its format."""
    study = opened()
    build = study.forwards.scorer.model

    def changed(weights: Any, copy: int = 0) -> Any:
        model = build(weights, copy)
        change(model, weights.fmt)
        return model

    study.forwards.scorer.model = changed  # type: ignore[method-assign]
    return study


def change_scores(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Have the forwards return ``change`` of their scores [B] and tokens [B, L]."""
    monkeypatch.setattr(
        "precision_lib.scoring.forced.score_tokens",
        lambda model, tokens, lengths: change(score_tokens(model, tokens, lengths), tokens),
    )
