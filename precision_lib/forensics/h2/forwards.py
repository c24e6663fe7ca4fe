"""Scores of the frozen sequences in a format: one forward per format and run, kept.

The hazard. A score that is computed in FP32 and rounded, and one that is computed in bf16
throughout, are both "bf16 rewards", and their errors differ by a factor. So the two causes are kept
apart: a forward in the format whose score head and score stay wide says what the trunk alone does.

N sequences of all shards, one shard after the other.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.work import REWARDED, Planned, Tokens, on_trajectories
from precision_lib.formats import get_format
from precision_lib.models.reward_model import RewardModel
from precision_lib.scoring.forced import forced_rewards
from precision_lib.scoring.forward import rows_per_forward
from precision_lib.scoring.micro import FIRST, batches_of_run
from precision_lib.scoring.scorer import EXACT, GOLDEN, Scorer, Weights
from precision_lib.trajectories.store import Trajectories

#: A forward in the format up to the hidden states; the score head and the score are wide.
WIDE_HEAD = "wide head"


@dataclass(frozen=True)
class RewardScored:
    """What one forward over all sequences gave.

    Attributes:
        scores: [N] in the format that they came out in, on the CPU.
        parameters: format of the parameters, as observed (several are joined by ``+``).
    """

    scores: Tensor
    parameters: str


def wider(fmt: str) -> str:
    """The format that scores of ``fmt`` are measured against: fp64 for fp32, else fp32."""
    return EXACT if fmt in (GOLDEN, EXACT) else GOLDEN


def _widen_head(model: Any, original: Any, fmt: str) -> Any:
    """Put the original score head into ``model`` in ``fmt``; returns the hook to remove again."""
    dtype = get_format(fmt).dtype
    for name, parameter in original.score.named_parameters():
        getattr(model.score, name).data = parameter.data.to(dtype, copy=True)

    def widen(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.to(dtype) for x in inputs)

    return model.score.register_forward_pre_hook(widen)


@dataclass
class RewardForwards:
    """Forwards of a reward model over frozen shards, each run once, when first asked for.

    Attributes:
        reward: the FP32 reward model, unchanged.
        trajectories: the shards.
    """

    reward: RewardModel
    trajectories: tuple[Trajectories, ...]

    def __post_init__(self) -> None:
        self.scorer = Scorer(self.reward.model, self._score)

    def scored(self, fmt: str, run: str = FIRST) -> RewardScored:
        """Scores of all sequences with parameters in ``fmt``.

        Args:
            run: ``FIRST``; ``AGAIN``, the same once more; ``REBATCHED``, in another order and
                micro-batch; :data:`WIDE_HEAD`.
        """
        return self.scorer.scored(Weights("reward", fmt), run)

    def _score(self, model: Any, weights: Weights, run: str) -> RewardScored:
        if run != WIDE_HEAD:
            return self._over_shards(model, run)
        hook = _widen_head(model, self.reward.model, wider(weights.fmt))
        try:
            return self._over_shards(model, run)
        finally:
            hook.remove()

    def _over_shards(self, model: Any, run: str) -> RewardScored:
        parts, seen = [], set()
        for shard in self.trajectories:
            count, rows = len(shard.reward_tokens), rows_per_forward(shard.tokens.shape[1], model)
            micro = batches_of_run(rows, count, run)
            given = shard.reward_tokens, shard.reward_lengths
            scores, observed = forced_rewards(model, *given, micro)
            parts.append(scores)
            seen.add(observed["parameters"])
        return RewardScored(torch.cat(parts), "+".join(sorted(seen)))


def work(planned: Planned) -> Tokens:
    """Every forward of the reward model, also in another batch and with a wide head."""
    return on_trajectories(planned, REWARDED, "reward", runs=2)
