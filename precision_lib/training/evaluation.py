"""What a trained policy is worth, measured in FP32 for every configuration: reward and KL.

The hazard. A run's own curve is measured with the run's own rounding. So the FP32 masters of every
run are measured alike: FP32 sampling from the same prompts with the same random numbers, the FP32
reward model, and the KL over the whole vocabulary in float64. The prompts are those of training,
drawn in an order of their own: what was learned is measured, not what generalises.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from precision_lib.models.pipeline import Pipeline
from precision_lib.ppo.kl import full_kl
from precision_lib.ppo.policy_entropy import entropy
from precision_lib.scoring.forced import forced_rewards
from precision_lib.scoring.forward import rows_per_forward, trunk_and_logits
from precision_lib.scoring.micro import micro_batches
from precision_lib.training.forward import sequences_of
from precision_lib.trajectories.batches import FreezeSettings, sample_batch

#: Prompts of the evaluation are drawn with it: the same for every run of a sweep.
SEED = 20_000


@dataclass(frozen=True)
class Evaluation:
    """A policy's figures on its own FP32 samples.

    Attributes:
        reward_mean, reward_std: FP32 scores of the responses.
        kl_per_token: nats, full vocabulary, mean over response tokens.
        kl_per_sequence: nats, its sum over a response, mean over responses.
        entropy_mean: nats per response token.
        sequences, tokens: how many.
    """

    reward_mean: float
    reward_std: float
    kl_per_token: float
    kl_per_sequence: float
    entropy_mean: float
    sequences: int
    tokens: int


@torch.no_grad()
def evaluate(policy: Any, pipeline: Pipeline, max_new_tokens: int, sequences: int) -> Evaluation:
    """Measure an FP32 ``policy`` on so many responses, one to each prompt while there are prompts.

    Call it inside :func:`runtime.deterministic`.

    Raises:
        FloatingPointError: the policy gives no distribution to sample from.
    """
    settings = FreezeSettings(
        num_batches=1,
        batch_size=sequences,
        max_new_tokens=max_new_tokens,
        samples_per_prompt=1,
        seed=SEED,
    )
    drawing = replace(pipeline, policy=replace(pipeline.policy, model=policy))
    sampled = sample_batch(drawing, settings, 0)
    given = sequences_of(sampled, policy.device)
    rows = rows_per_forward(given.tokens.shape[1], policy)
    kl, entropies = torch.zeros(2, *given.mask.shape, dtype=torch.float64)
    for part in torch.arange(sequences).split(rows):
        batch = given.rows(part)
        predicting = slice(batch.first, -1)
        own = trunk_and_logits(policy, batch.tokens)[1][:, predicting]
        reference = trunk_and_logits(pipeline.reference.model, batch.tokens)[1][:, predicting]
        kl[part] = full_kl(own, reference).gather(1, batch.columns).cpu()
        entropies[part] = entropy(own.double()).gather(1, batch.columns).cpu()
    mask = given.mask.cpu()
    read = sampled.reward_tokens, sampled.reward_lengths
    scores, _ = forced_rewards(pipeline.reward.model, *read, micro_batches(rows, sequences))
    return Evaluation(
        reward_mean=float(scores.double().mean()),
        reward_std=float(scores.double().std()),
        kl_per_token=float(kl[mask].mean()),
        kl_per_sequence=float(torch.where(mask, kl, 0).sum(1).mean()),
        entropy_mean=float(entropies[mask].mean()),
        sequences=sequences,
        tokens=int(mask.sum()),
    )
