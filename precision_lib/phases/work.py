"""Tokens of each stage of the main job, by kind of forward: before anything is run."""

from collections.abc import Sequence

from precision_lib.forensics.budget import Budget
from precision_lib.forensics.damage.work import work_of_step
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.work import (
    DRAWN,
    REWARDED,
    SCORED,
    Pass,
    Planned,
    Tokens,
    prompt_length,
)
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.scoring.scorer import GOLDEN

FREEZE, DAMAGE = "freeze", "damage"


def planned_work(
    pipeline: Pipeline,
    budget: Budget,
    configurations: Sequence[PrecisionConfig],
    frozen_length: int | None = None,
) -> dict[str, Tokens]:
    """Tokens of each stage, ``freeze``, the hypotheses and ``damage``, by kind of forward.

    Args:
        frozen_length: tokens of the longest frozen sequence of each batch; by default none ends
            before ``max_new_tokens``, the most that it can be.
    """
    freeze = budget.freeze
    frozen = freeze.num_batches * freeze.batch_size
    prompt = prompt_length(pipeline, frozen // freeze.samples_per_prompt, freeze.seed)
    length = frozen_length or prompt + freeze.max_new_tokens
    given, group = (frozen, length), freeze.samples_per_prompt
    stages = {FREEZE: _freeze(pipeline, budget, prompt, length)} | {
        name: HYPOTHESES[name].work(Planned(pipeline, configurations, settings, *given, group))
        for name, settings in budget.settings.items()
    }
    sequences = min(budget.step_sequences, frozen // group)
    return stages | {DAMAGE: work_of_step(configurations, sequences, length)}


def _freeze(pipeline: Pipeline, budget: Budget, prompt: int, length: int) -> Tokens:
    count = budget.freeze.num_batches * budget.freeze.batch_size
    references = 1 if pipeline.reference.model is pipeline.policy.model else 2
    tokens = Tokens(
        {
            Pass(DRAWN, GOLDEN, length, budget.freeze.batch_size): count
            * (budget.freeze.max_new_tokens - 1),
            Pass(SCORED, GOLDEN, prompt): count * prompt,
        }
    )
    tokens[Pass(SCORED, GOLDEN, length)] += count * length * references
    tokens[Pass(REWARDED, GOLDEN, length)] += count * length
    if pipeline.value_head is None:  # fitted on the first batch
        first = budget.freeze.batch_size * length
        tokens[Pass(SCORED, GOLDEN, length)] += first
        tokens[Pass(REWARDED, GOLDEN, length)] += first
    return tokens
