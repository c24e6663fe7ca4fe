"""One forward of the policy for PPO: log-probs, values, entropy of the response tokens.

The hazard. Old log-probs that come from the sampler, from another batch shape or from other code
than the new ones make a ratio that is not 1 before anything was learned. So there is one function:
the old figures are taken from it without a gradient, the new ones with, in the same micro-batches.

n sequences, L tokens of prompt and response, T response tokens of the longest, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.ppo.policy_entropy import entropy
from precision_lib.scoring.forward import forward as teacher_forced
from precision_lib.trajectories.batches import Sampled
from precision_lib.trajectories.transfer import moved

#: So many logits of a forward are looked at to see which format they are in.
SOME = 64


@dataclass(frozen=True)
class Sequences:
    """The tokens of a rollout on one device; real tokens first.

    Attributes:
        tokens: [N, L] int64, right-padded.
        first: column of ``tokens`` before which no response token is predicted.
        columns: [N, T] int64, the prediction ``tokens[:, first:-1]`` of each response token.
        mask: [N, T] bool, right-padded, True for a response token.
    """

    tokens: Tensor
    first: int
    columns: Tensor
    mask: Tensor

    def rows(self, chosen: Tensor | slice) -> "Sequences":
        """Some of the sequences, at the same width."""
        return Sequences(self.tokens[chosen], self.first, self.columns[chosen], self.mask[chosen])

    def predicted(self, x: Tensor) -> Tensor:
        """[N, T] entries of the response tokens in ``x`` [N, L-1], which fits ``tokens[:, 1:]``."""
        return x[:, self.first :].gather(1, self.columns)

    def to(self, device: torch.device) -> "Sequences":
        """The same on ``device``, by one transfer."""
        tokens, columns, mask = moved(device, self.tokens, self.columns, self.mask)
        return Sequences(tokens, self.first, columns, mask)


def sequences_of(sampled: Sampled, device: torch.device) -> Sequences:
    """The tokens of a rollout, aligned once for every forward over them."""
    first = int(sampled.prompt_lengths.min()) - 1
    position = torch.arange(int(sampled.response_lengths.max()))
    mask = position < sampled.response_lengths.unsqueeze(1)
    columns = sampled.prompt_lengths.unsqueeze(1) - 1 - first + position
    columns = columns.clamp(max=sampled.tokens.shape[1] - 2 - first)
    return Sequences(sampled.tokens, first, columns, mask).to(device)


@dataclass(frozen=True)
class ForwardFigures:
    """What a forward gave for response tokens; masked slots hold anything.

    Attributes:
        logprobs: [n, T] in the KL format.
        values: [n, T] in the value format; None without a head.
        entropy: [n, T] FP32 nats; None unless it was asked for.
        some_logits: [SOME] or fewer, for a look at their format (``forensics/observed_format.py``).
    """

    logprobs: Tensor
    values: Tensor | None
    entropy: Tensor | None
    some_logits: Tensor


def forward(
    model: Any,
    given: Sequences,
    kl_format: str,
    head: tuple[Tensor, Tensor] | None = None,
    value_format: str = "fp32",
    *,
    with_entropy: bool = False,
) -> ForwardFigures:
    """Log-probs of response tokens, and values and entropies where they are asked for.

    Differentiable in the model's parameters and in the head.

    Args:
        model: causal LM; its parameters' format is the format of the forward.
        given: n sequences.
        kl_format: of the log-softmax; logits are cast to it first.
        head: (weight [H], bias []) of the value head. value_format: of values.
    """
    forced = teacher_forced(model, given.tokens, given.first, (kl_format,), head, value_format)
    values, entropies = forced.values, None
    if values is not None:
        values = values.gather(1, given.columns)
    if with_entropy:
        entropies = entropy(forced.logits.detach()).gather(1, given.columns)
    logprobs = forced.logprobs[kl_format].gather(1, given.columns)
    return ForwardFigures(logprobs, values, entropies, forced.logits.detach()[0, 0, :SOME])
