"""What a value head is fed: hidden states of the frozen tokens, rewards, and the mask.

The hazard. A value is read at the state *before* the token that it judges; one position too far and
the critic sees the action. And an error that is blamed on the head may have come up from the trunk
below it: so the states are kept per format of the trunk, and the head is varied on top of each.

N sequences, T response tokens at most, M response tokens in all (one sequence after the other),
L prompt and response tokens, H hidden size.
"""

import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.forwards import EXACT, FIRST, takes_other_shape
from precision_lib.forensics.observed_format import observed_format
from precision_lib.forensics.work import SCORED, Planned, Tokens, on_trajectories
from precision_lib.formats import format_of
from precision_lib.models.loading import Checkpoint, set_parameters, working_copy
from precision_lib.models.placement import computes_on_cpu
from precision_lib.ppo import rewards
from precision_lib.runtime import Float64Casts, deterministic
from precision_lib.trajectories.store import Trajectories
from precision_lib.trajectories.teacher_forcing import (
    other_rows,
    rows_per_forward,
    trunk,
)


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
        progress: called after each forward over all of them.
    """

    checkpoint: Checkpoint
    shards: Sequence[Trajectories]
    progress: Callable[[], Any] = lambda: None
    _hidden: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _parameters: dict[str, str] = field(default_factory=dict)
    _working: Any = None

    def hidden(self, fmt: str, run: str = FIRST) -> Tensor:
        """[M, H] on the CPU, in the format in which the trunk made them.

        Args:
            fmt: format of the trunk's parameters.
            run: ``FIRST``, ``AGAIN`` (the same once more) or ``REBATCHED`` (other order and size).
        """
        key = (fmt, run)
        if key not in self._hidden:
            if self._working is None:
                self._working = working_copy(self.checkpoint.model)
            set_parameters(self._working, self.checkpoint.model, fmt)
            native = not computes_on_cpu(self.checkpoint.model)
            with deterministic(zlib.crc32(repr(key).encode()), native_products=native):
                parts = [self._shard(shard, fmt, run) for shard in self.shards]
            self._hidden[key] = torch.cat(parts)
            # Values of a checkpoint that was saved in bf16 lie on its grid in FP32 too.
            formats = {format_of(p.dtype).name for p in self._working.parameters()}
            self._parameters[fmt] = "+".join(sorted(formats))
            self.progress()
        return self._hidden[key]

    def observed(self, fmt: str) -> str:
        """Format of parameters and states as seen in the forward of ``fmt``."""
        seen = {observed_format(self.hidden(fmt)), self._parameters[fmt]}
        return "+".join(sorted(seen))

    @torch.no_grad()
    def _shard(self, shard: Trajectories, fmt: str, run: str) -> Tensor:
        tokens, mask = shard.tokens.to(self.checkpoint.model.device), shard.mask.cpu()
        rows = rows_per_forward(tokens.shape[1], self._working)
        order = torch.arange(len(tokens))
        if takes_other_shape(run):
            rows, order = other_rows(rows, len(order)), order.flip(0)
        kept: dict[int, Tensor] = {}
        for chosen in torch.split(order, rows):
            with Float64Casts() if fmt == EXACT else nullcontext():
                states = trunk(self._working, tokens[chosen.to(tokens.device)])[:, :-1].cpu()
            kept |= {int(row): states[i][mask[row]] for i, row in enumerate(chosen)}
        return torch.cat([kept[row] for row in range(len(tokens))])


def work(planned: Planned) -> Tokens:
    """Every forward of the trunk: each format again in another batch."""
    return on_trajectories(planned, SCORED, "policy", runs=1)
