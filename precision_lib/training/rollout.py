"""One rollout: sample, score with all four models, and what PPO makes of the scores.

The hazards. Tokens that another copy of the policy drew are off-policy; old log-probs that the
sampler kept belong to another code path; a score at the last column is lost to padding; advantages
whitened over padding are not whitened. So the training model draws once per step, in its
configuration, its own training forward gives the old log-probs, and everything is aligned to
response tokens, real ones first. Where the configuration has an engine that draws instead, how far
it is off is measured on the tokens of the step.

N sequences, T response tokens of the longest.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.observed_format import observed_format
from precision_lib.formats import get_format
from precision_lib.matrix import TRAINER, PrecisionConfig
from precision_lib.models.loading import set_parameters
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.rollout_engine import engine_format, rollout_engine
from precision_lib.ppo.advantages import gae
from precision_lib.ppo.kl import kl_penalty
from precision_lib.ppo.masked import whiten
from precision_lib.ppo.ratios import importance_weights
from precision_lib.ppo.rewards import assemble_rewards
from precision_lib.scoring.forced import forced_rewards
from precision_lib.scoring.forward import in_own_format, rows_per_forward
from precision_lib.scoring.micro import micro_batches
from precision_lib.training.forward import (
    ForwardFigures,
    Sequences,
    forward,
    sequences_of,
)
from precision_lib.training.settings import PPOSettings, check_columns
from precision_lib.training.weights import Weights
from precision_lib.trajectories.batches import Sampled, sample_batch
from precision_lib.trajectories.transfer import HOST, moved
from precision_lib.trajectories.working_copy import hollow_copy


@dataclass(frozen=True)
class TrainingModels:
    """What a run computes with besides the weights that it trains.

    The pipeline has the FP32 originals; reference and reward are in their formats, the originals
    where that is FP32.
    """

    pipeline: Pipeline
    configuration: PrecisionConfig
    reference: Any
    reward: Any


def open_models(pipeline: Pipeline, configuration: PrecisionConfig) -> TrainingModels:
    """Reference and reward model cast once to their formats.

    Raises:
        ValueError: a column that training does not apply.
    """
    check_columns(configuration)
    return TrainingModels(
        pipeline,
        configuration,
        _in_format(pipeline.reference.model, configuration.reference),
        _in_format(pipeline.reward.model, configuration.reward),
    )


def _in_format(original: Any, fmt: str) -> Any:
    if fmt == "fp32":
        return original
    copy = hollow_copy(original)
    set_parameters(copy, original, fmt)
    return copy


@dataclass(frozen=True)
class ScoredRollout:
    """What the four models say of a rollout, each in its format, on the host.

    Attributes:
        logprobs, ref_logprobs: [N, T] in the KL format.
        values: [N, T] in the value format.
        scores: [N] in the reward format.
        entropy: [N, T] FP32, of the policy.
        rollout_logprobs: [N, T], as the sampler reported them; where the rollout is the trainer's
            own path, ``logprobs`` themselves.
        logits_format: of policy and reference, as observed.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor
    entropy: Tensor
    rollout_logprobs: Tensor
    logits_format: dict[str, str]

    def first(self, count: int) -> "ScoredRollout":
        """Of the first ``count`` sequences."""
        tensors = {n: x[:count] for n, x in vars(self).items() if isinstance(x, Tensor)}
        return ScoredRollout(**tensors, logits_format=self.logits_format)


@dataclass(frozen=True)
class Experience:
    """A rollout with what PPO learns from it; every [N, T] is FP32 unless said otherwise.

    All of it is on the host, where a figure costs no launch and nothing waits for a GPU.

    Attributes:
        sampled: tokens, lengths and what the reward model reads.
        given: the tokens, aligned.
        scored: the models' figures.
        penalty: [N, T] KL estimate per token in the KL format.
        rewards, returns: [N, T]. advantages: [N, T], whitened over real tokens.
        importance: [N, T] weights of the policy loss, 0 where masked; None without them.
        rollout_format: of the sampler, as observed.
    """

    sampled: Sampled
    given: Sequences
    scored: ScoredRollout
    penalty: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    importance: Tensor | None = None
    rollout_format: str = ""

    @property
    def weighted_advantages(self) -> Tensor:
        """[N, T] what the policy loss learns from: advantages times importance weights.

        A weight is not negative, so it passes through the minimum of PPO's loss.
        """
        return self.advantages if self.importance is None else self.advantages * self.importance


def sampler(models: TrainingModels, weights: Weights) -> Any:
    """The model that draws: the working policy, or an engine made of the masters of this step."""
    fmt = models.configuration.rollout
    return weights.working if fmt in ("", TRAINER) else rollout_engine(weights.golden, fmt)


def draw(models: TrainingModels, engine: Any, settings: PPOSettings, step: int) -> Sampled:
    """Responses of step ``step``, drawn by ``engine``; prompts and random numbers depend on the
    seed and the step alone."""
    policy = replace(models.pipeline.policy, model=engine)
    with in_own_format(engine):
        return sample_batch(replace(models.pipeline, policy=policy), settings.sampling, step)


def minibatch_rows(given: Sequences, settings: PPOSettings, model: Any) -> list[slice]:
    """Rows of each forward of ``model``: minibatches in order, each cut so that its logits fit."""
    count = len(given.tokens) // settings.minibatches
    most = min(count, rows_per_forward(given.tokens.shape[1], model))
    starts = range(0, len(given.tokens), count)
    return [slice(i, min(i + most, s + count)) for s in starts for i in range(s, s + count, most)]


@torch.no_grad()
def score(
    models: TrainingModels, weights: Weights, sampled: Sampled, given: Sequences, rows: list[slice]
) -> ScoredRollout:
    """ForwardFigures of all four models on the sampled tokens, in the micro-batches ``rows``."""
    formats, there = models.configuration, given.to(weights.master.device)
    head = weights.head_weight.detach(), weights.head_bias.detach()
    policy = _joined(
        forward(weights.working, there.rows(r), formats.kl, head, formats.value, with_entropy=True)
        for r in rows
    )
    reference = _joined(forward(models.reference, there.rows(r), formats.kl) for r in rows)
    read = sampled.reward_tokens, sampled.reward_lengths
    count = len(given.tokens)
    micro = micro_batches(min(count, _reward_rows(models.reward, sampled)), count)
    scores, _ = forced_rewards(models.reward, *read, micro)
    assert policy.values is not None
    assert policy.entropy is not None
    logprobs, ref_logprobs, values, entropy, *some_logits = moved(
        HOST,
        *(policy.logprobs, reference.logprobs, policy.values, policy.entropy),
        *(policy.some_logits, reference.some_logits),
    )
    reported = logprobs
    if formats.rollout != TRAINER:
        reported = given.predicted(sampled.rollout_logprobs)
    seen = ("+".join(sorted({observed_format(x) for x in parts})) for parts in some_logits)
    logits_format = dict(zip(("policy", "reference"), seen, strict=True))
    return ScoredRollout(logprobs, ref_logprobs, values, scores, entropy, reported, logits_format)


def _reward_rows(model: Any, sampled: Sampled) -> int:
    return rows_per_forward(sampled.reward_tokens.shape[1], model)


def _joined(parts: Iterator[ForwardFigures]) -> ForwardFigures:
    figures = list(parts)

    def joined(name: str) -> Any:
        tensors = [getattr(f, name) for f in figures]
        return None if tensors[0] is None else torch.cat(tensors)

    return ForwardFigures(
        joined("logprobs"),
        joined("values"),
        joined("entropy"),
        torch.stack([f.some_logits for f in figures]),
    )


@torch.no_grad()
def learn_from(
    sampled: Sampled,
    given: Sequences,
    scored: ScoredRollout,
    settings: PPOSettings,
    kl_format: str,
    kl_coefficient: float,
) -> Experience:
    """Rewards, returns and whitened advantages of scored sequences.

    The penalty is k1 per token, in the KL format; the score is added at the last real token; both
    and everything behind them in FP32 or wider. Importance weights are of the policy before the
    step, so that they are the same in every minibatch and carry no gradient.
    """
    mask, dtype = given.mask, get_format(kl_format).dtype
    penalty = kl_penalty(scored.logprobs, scored.ref_logprobs, "k1", dtype)
    rewards = assemble_rewards(scored.scores, penalty, mask, kl_coefficient)
    values = scored.values.to(torch.promote_types(scored.values.dtype, torch.float32))
    advantages, returns = gae(rewards, values, mask, settings.gamma, settings.lam)
    white = whiten(advantages, mask)
    importance = None
    if settings.importance_weights is not None:
        assert settings.importance_cap is not None
        importance = importance_weights(
            scored.logprobs,
            scored.rollout_logprobs,
            mask,
            level=settings.importance_weights,
            mode="truncate",
            cap=settings.importance_cap,
        )
    return Experience(sampled, given, scored, penalty, rewards, white, returns, importance)


def rollout(
    models: TrainingModels,
    weights: Weights,
    settings: PPOSettings,
    step: int,
    kl_coefficient: float,
) -> Experience:
    """Sample and score one batch. Call it inside :func:`runtime.deterministic`."""
    engine = sampler(models, weights)
    sampled, fmt = draw(models, engine, settings, step), engine_format(engine)
    del engine  # a copy of the policy, which the forwards need no more
    given = sequences_of(sampled, HOST)
    rows = minibatch_rows(given, settings, weights.working)
    scored, formats = score(models, weights, sampled, given, rows), models.configuration
    experience = learn_from(sampled, given, scored, settings, formats.kl, kl_coefficient)
    return replace(experience, rollout_format=TRAINER if formats.rollout == TRAINER else fmt)
