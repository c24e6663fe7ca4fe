"""Log-probs, values and scores of fixed sequences: the one path of freeze and replay.

The hazard. A golden value that comes from other code than the value compared with it differs from
it by that code. Freezing and replaying therefore call the functions here, with the same batch
shape, and what is left between an FP32 replay and the frozen figures must be nothing at all.

N sequences, L tokens of the longest, V vocabulary, H hidden size.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.formats import format_of, get_format
from precision_lib.models.lm_head import parameter_formats
from precision_lib.models.reward_model import score_tokens
from precision_lib.models.value_head import ValueHead, predict_values
from precision_lib.ppo.logprobs import token_logprobs
from precision_lib.ppo.masked import real_or_zero
from precision_lib.runtime import Float64Casts
from precision_lib.trajectories.teacher_forcing import trunk_and_logits


@dataclass(frozen=True)
class Forced:
    """What teacher-forced forwards over sequences gave.

    Attributes:
        logprobs: [N, L-1] in the KL format, on the CPU; 0 where masked.
        values: [N, L-1] in the value format, on the CPU; 0 where masked. None without a head.
        parameters, logits: formats as observed (several are joined by ``+``).
    """

    logprobs: Tensor
    values: Tensor | None
    parameters: str
    logits: str


@dataclass(frozen=True)
class Micro:
    """How N sequences are cut into forwards.

    Attributes:
        rows: sequences per forward.
        order: [M] sequence numbers in the order in which they are taken; each at least once.
    """

    rows: int
    order: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.split(self.order, self.rows))


@torch.no_grad()
def forced(
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    micro: Micro,
    *,
    kl_format: str,
    head: ValueHead | None = None,
    value_format: str = "fp32",
) -> Forced:
    """Log-probs of response tokens, and values when there is a head, by whole-sequence forwards.

    Args:
        model: causal LM; its parameters' format is the format of the forward.
        tokens: [N, L] int64, right-padded.
        mask: [N, L-1] bool, True where ``tokens[:, 1:]`` is scored.
        micro: which sequences go into one forward.
        kl_format: of the log-softmax; logits are cast to it first.
        head, value_format: hidden states and head are cast to this format first.
    """
    found = torch.zeros(mask.shape, dtype=get_format(kl_format).dtype)
    values = torch.zeros(mask.shape, dtype=get_format(value_format).dtype)
    seen: set[str] = set()
    parameters = parameter_formats(model)
    first = int(mask.any(0).int().argmax())  # columns before it hold prompts alone
    for chosen in micro:
        here, keep = tokens[chosen].to(model.device), mask[chosen, first:]
        with exactly(parameters):
            hidden, logits = trunk_and_logits(model, here)
        seen.add(format_of(logits.dtype).name)
        scored = token_logprobs(logits[:, first:-1], here[:, first + 1 :], found.dtype).cpu()
        del logits  # the largest tensor of all: it must not live on into the next forward
        found[chosen, first:] = real_or_zero(scored, keep)
        if head is not None:
            state = hidden[:, first:-1]
            weight, bias = head.weight.to(state.device), head.bias.to(state.device)
            predicted = predict_values(state, weight, bias, value_format).cpu()
            values[chosen, first:] = real_or_zero(predicted, keep)
        del hidden
    return Forced(found, None if head is None else values, _joined(parameters), _joined(seen))


@torch.no_grad()
def forced_rewards(
    model: Any, tokens: Tensor, lengths: Tensor, micro: Micro
) -> tuple[Tensor, dict[str, str]]:
    """Scores [N] in the reward model's own format, on the CPU; and the formats as observed.

    ``tokens`` [N, R] int64 are right-padded, ``lengths`` [N] int64.
    """
    parameters = {format_of(p.dtype).name for p in model.parameters()}
    parts = []
    for chosen in micro:
        with exactly(parameters):
            scores = score_tokens(model, tokens[chosen].to(model.device), lengths[chosen])
            parts.append(scores.cpu())
    scored = torch.cat(parts)
    found = torch.zeros(len(tokens), dtype=scored.dtype)
    found[micro.order] = scored
    return found, {"parameters": _joined(parameters), "scores": format_of(scored.dtype).name}


def exactly(parameters: set[str]) -> AbstractContextManager[Any]:
    """FP32 casts inside the model become float64 ones when its parameters are float64."""
    return Float64Casts() if parameters == {"fp64"} else nullcontext()


def _joined(names: set[str]) -> str:
    return "+".join(sorted(names))
