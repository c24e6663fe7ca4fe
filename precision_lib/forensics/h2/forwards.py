"""Scores of the frozen sequences in a format: one forward per format and run, kept.

The hazard. A score that is computed in FP32 and rounded, and one that is computed in bf16
throughout, are both "bf16 rewards", and their errors differ by a factor. So the two causes are kept
apart: a forward in the format whose score head and score stay wide says what the trunk alone does.
And a forward that is asked for twice may be asked for once by mistake: each run has a random seed
of its own, so that a dropout left on shows as a difference.

N sequences of all shards, one shard after the other.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.forwards import EXACT, FIRST, GOLDEN, takes_other_shape
from precision_lib.forensics.work import REWARDED, Planned, Tokens, on_trajectories
from precision_lib.formats import get_format
from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.models.placement import computes_on_cpu
from precision_lib.models.reward_model import RewardModel
from precision_lib.runtime import deterministic
from precision_lib.trajectories.scoring import Micro, forced_rewards
from precision_lib.trajectories.store import Trajectories
from precision_lib.trajectories.teacher_forcing import other_rows, rows_per_forward

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


def micro_batches(shard: Trajectories, model: Any, run: str) -> Micro:
    """How a shard is cut: as it was frozen, or in the opposite order and a third of the rows."""
    count = len(shard.reward_tokens)
    rows = min(count, rows_per_forward(shard.tokens.shape[1], model))
    order = torch.arange(count)
    if takes_other_shape(run):
        return Micro(other_rows(rows, count), order.flip(0))
    return Micro(rows, order)


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
        progress: called after each forward.
    """

    reward: RewardModel
    trajectories: tuple[Trajectories, ...]
    progress: Callable[[], Any] = lambda: None
    _scored: dict[tuple[str, str], RewardScored] = field(default_factory=dict)
    _working: Any = None

    def scored(self, fmt: str, run: str = FIRST) -> RewardScored:
        """Scores of all sequences with parameters in ``fmt``.

        Args:
            run: ``FIRST``; ``AGAIN``, the same once more; ``REBATCHED``, in another order and
                micro-batch; :data:`WIDE_HEAD`.
        """
        key = (fmt, run)
        if key not in self._scored:
            seed = zlib.crc32(repr(("reward", *key)).encode())
            with deterministic(seed, native_products=not computes_on_cpu(self.reward.model)):
                self._scored[key] = self._score(fmt, run)
            self.progress()
        return self._scored[key]

    def _score(self, fmt: str, run: str) -> RewardScored:
        model = self._model(fmt)
        hook = _widen_head(model, self.reward.model, wider(fmt)) if run == WIDE_HEAD else None
        parts, seen = [], set()
        try:
            for shard in self.trajectories:
                micro = micro_batches(shard, model, run)
                scores, observed = forced_rewards(
                    model, shard.reward_tokens, shard.reward_lengths, micro
                )
                parts.append(scores)
                seen.add(observed["parameters"])
        finally:
            if hook is not None:
                hook.remove()
        return RewardScored(torch.cat(parts), "+".join(sorted(seen)))

    def _model(self, fmt: str) -> Any:
        if self._working is None:
            self._working = working_copy(self.reward.model)
        set_parameters(self._working, self.reward.model, fmt)
        return self._working


def work(planned: Planned) -> Tokens:
    """Every forward of the reward model, also in another batch and with a wide head."""
    return on_trajectories(planned, REWARDED, "reward", runs=2)
