"""What a value head is fed: hidden states of the frozen tokens, rewards, and the mask.

The hazard. A value is read at the state *before* the token that it judges; one position too far and
the critic sees the action. And an error that is blamed on the head may have come up from the trunk
below it: so the states are kept per format of the trunk, and the head is varied on top of each.

N sequences, T response tokens at most, M response tokens in all (one sequence after the other),
L prompt and response tokens, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.observed_format import observed_format
from precision_lib.forensics.work import SCORED, Planned, Tokens, on_trajectories
from precision_lib.models.loading import Checkpoint
from precision_lib.ppo import rewards
from precision_lib.scoring.forced import forced_states
from precision_lib.scoring.forward import formats_of, rows_per_forward
from precision_lib.scoring.micro import FIRST, batches_of_run
from precision_lib.scoring.scorer import Scorer, Weights
from precision_lib.trajectories.store import Trajectories


def response_rectangle(shards: Sequence[Trajectories]) -> Tensor:
    """[N, T] bool, right-padded: True for a response token."""
    lengths = torch.cat([shard.response_lengths.cpu() for shard in shards])
    return torch.arange(int(lengths.max())) < lengths.unsqueeze(1)


def terminal_rewards(scores: Tensor, mask: Tensor) -> Tensor:
    """[N, T] FP32: the score [N] at the last response token, no KL penalty (no update yet)."""
    return rewards.assemble_rewards(scores, torch.zeros(mask.shape), mask, 0.0)


@dataclass
class States:
    """Hidden states of the frozen response tokens, one forward per (format, run), kept.

    Attributes:
        checkpoint: the FP32 policy.
        shards: the frozen trajectories.
    """

    checkpoint: Checkpoint
    shards: Sequence[Trajectories]

    def __post_init__(self) -> None:
        self.scorer = Scorer(self.checkpoint.model, self._score)

    def hidden(self, fmt: str, run: str = FIRST) -> Tensor:
        """[M, H] on the CPU, in the format in which the trunk made them.

        Args:
            fmt: format of the trunk's parameters.
            run: ``FIRST``, ``AGAIN`` (the same once more) or ``REBATCHED`` (other order and size).
        """
        return self.scorer.scored(Weights("trunk", fmt), run)[0]

    def observed(self, fmt: str) -> str:
        """Format of parameters and states as seen in the forward of ``fmt``.

        Values of a checkpoint that was saved in bf16 lie on its grid in FP32 too.
        """
        hidden, parameters = self.scorer.scored(Weights("trunk", fmt))
        return "+".join(sorted({observed_format(hidden), parameters}))

    def _score(self, model: Any, _: Weights, run: str) -> tuple[Tensor, str]:
        parts = []
        for shard in self.shards:
            rows = rows_per_forward(shard.tokens.shape[1], model)
            micro = batches_of_run(rows, len(shard.tokens), run)
            parts.append(forced_states(model, shard.tokens, shard.mask.cpu(), micro))
        return torch.cat(parts), formats_of(model.parameters())


def work(planned: Planned) -> Tokens:
    """Every forward of the trunk: each format again in another batch."""
    return on_trajectories(planned, SCORED, "policy", runs=1)
