"""What is trained how: shape of the model, schedule, and which tokens a step sees.

The hazard is a batch that depends on history. A random generator that lives through the run makes
step 1,000 depend on all steps before it, so a resumed run trains on other batches than the one it
continues. Here context length, learning rate and batch are functions of the step alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides steps and seed.

    `phases` are (share of the steps, context length) pairs, in order; each step sees
    `tokens_per_step` tokens, cut into contexts of the phase's length.
    """

    vocabulary: int = 2048
    hidden: int = 256
    intermediate: int = 688
    layers: int = 4
    heads: int = 4
    positions: int = 2048
    tokens_per_step: int = 2048
    phases: tuple[tuple[float, int], ...] = ((0.4, 256), (0.4, 512), (0.2, 2048))
    peak_learning_rate: float = 5e-3
    warmup_steps: int = 40
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    sample_prompts: int = 32
    sample_tokens: int = 128
    held_out_sample_tokens: int = 16384


DEFAULT_RECIPE = Recipe()


def context_at(step: int, steps: int, recipe: Recipe) -> int:
    """Context length of this step, counted from 0."""
    passed = 0.0
    for share, context in recipe.phases:
        passed += share
        if step < round(passed * steps):
            return context
    return recipe.phases[-1][1]


def learning_rate_at(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then linear decay that would reach 0 just after the last step."""
    warm_up = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
    return recipe.peak_learning_rate * min(warm_up, 1 - step / steps)


def batch_at(
    stream: NDArray[np.int64], step: int, context: int, recipe: Recipe, seed: int
) -> Tensor:
    """Token ids [rows, context + 1], int64; a function of its arguments alone.

    An epoch cuts the stream into adjoining contexts at a random offset and visits them in random
    order, so that every token is seen once per epoch and never at the same positions.
    """
    if recipe.tokens_per_step % context:
        raise ValueError(
            f"tokens_per_step {recipe.tokens_per_step} is no multiple of the context {context};"
            " choose lengths that divide it"
        )
    per_epoch = (len(stream) - 1) // context - 1
    if per_epoch < 1:
        raise ValueError(f"{len(stream)} tokens are too few for contexts of {context}; add text")
    rows = recipe.tokens_per_step // context
    starts = []
    for row in range(step * rows, (step + 1) * rows):
        epoch, index = divmod(row, per_epoch)
        generator = np.random.default_rng([seed, context, epoch])
        offset = int(generator.integers(context))
        starts.append(offset + context * int(generator.permutation(per_epoch)[index]))
    return torch.from_numpy(np.stack([stream[s : s + context + 1] for s in starts]))
