"""Log-probs, values, hidden states and scores of fixed sequences, put together from forwards.

The hazard. A golden value that comes from other code than the value compared with it differs from
it by that code. Freezing, replaying and every hypothesis therefore call the functions here, and
what is left between an FP32 replay and the frozen figures must be nothing at all.

N sequences, L tokens of the longest, V vocabulary, H hidden size, M tokens that are scored, one
sequence after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.formats import format_of, get_format
from precision_lib.models.reward_model import score_tokens
from precision_lib.models.value_head import ValueHead
from precision_lib.ppo.masked import real_or_zero
from precision_lib.scoring.forward import (
    formats_of,
    formats_of_model,
    forward,
    in_own_format,
    trunk,
)
from precision_lib.scoring.micro import Micro


@dataclass(frozen=True)
class Forced:
    """What teacher-forced forwards over sequences gave.

    Attributes:
        logprobs: format of the log-softmax to [N, L-1] in it, on the CPU; 0 where masked.
        values: [N, L-1] in the value format, on the CPU; 0 where masked. None without a head.
        parameters, logits: formats as observed (several are joined by ``+``).
    """

    logprobs: dict[str, Tensor]
    values: Tensor | None
    parameters: str
    logits: str


#: Is given the logits [m, V] and the tokens [m] of the m scored positions of one forward.
SeeLogits = Callable[[Tensor, Tensor], object]


@torch.no_grad()
def forced(
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    micro: Micro,
    *,
    kl_formats: tuple[str, ...],
    head: ValueHead | None = None,
    value_format: str = "fp32",
    see: SeeLogits | None = None,
) -> Forced:
    """Log-probs of response tokens, and values when there is a head, by whole-sequence forwards.

    Args:
        model: causal LM; its parameters' format is the format of the forward.
        tokens: [N, L] int64, right-padded.
        mask: [N, L-1] bool on the CPU, True where ``tokens[:, 1:]`` is scored.
        micro: which sequences go into one forward.
        kl_formats: of the log-softmax; logits are cast to it first.
        head, value_format: hidden states and head are cast to this format first.
        see: called with the logits of each forward, before they are dropped.
    """
    logprobs = {f: torch.zeros(mask.shape, dtype=get_format(f).dtype) for f in kl_formats}
    values = torch.zeros(mask.shape, dtype=get_format(value_format).dtype)
    seen: set[str] = set()
    of_head = None if head is None else (head.weight, head.bias)
    first = int(mask.any(0).int().argmax())  # columns before it hold prompts alone
    for chosen in micro:
        keep, given = mask[chosen, first:], tokens[chosen.to(tokens.device)].to(model.device)
        scored = forward(model, given, first, kl_formats, of_head, value_format)
        seen.add(format_of(scored.logits.dtype).name)
        for fmt, x in scored.logprobs.items():
            logprobs[fmt][chosen, first:] = real_or_zero(x.cpu(), keep)
        if scored.values is not None:
            values[chosen, first:] = real_or_zero(scored.values.cpu(), keep)
        if see is not None:
            of_responses = keep.to(scored.logits.device)
            see(scored.logits[of_responses], scored.targets[of_responses])
        del scored  # its logits must not live on into the next forward
    parameters, observed = formats_of_model(model), "+".join(sorted(seen))
    return Forced(logprobs, None if head is None else values, parameters, observed)


@torch.no_grad()
def forced_states(model: Any, tokens: Tensor, mask: Tensor, micro: Micro) -> Tensor:
    """[M, H] hidden states that predict the scored tokens, in the trunk's format, on the CPU.

    ``tokens``, ``mask`` and ``micro`` as in :func:`forced`.
    """
    state_of: dict[int, Tensor] = {}
    for chosen in micro:
        with in_own_format(model):
            states = trunk(model, tokens[chosen.to(tokens.device)].to(model.device))[:, :-1].cpu()
        state_of |= {int(row): states[i][mask[row]] for i, row in enumerate(chosen)}
    return torch.cat([state_of[row] for row in range(len(tokens))])


@torch.no_grad()
def forced_rewards(
    model: Any, tokens: Tensor, lengths: Tensor, micro: Micro
) -> tuple[Tensor, dict[str, str]]:
    """Scores [N] in the reward model's own format, on the CPU; and the formats as observed.

    ``tokens`` [N, R] int64 are right-padded, ``lengths`` [N] int64.
    """
    parts = []
    for chosen in micro:
        with in_own_format(model):
            scores = score_tokens(model, tokens[chosen].to(model.device), lengths[chosen])
            parts.append(scores.cpu())
    scored = torch.cat(parts)
    rewards = torch.zeros(len(tokens), dtype=scored.dtype)
    rewards[micro.order] = scored
    formats = {"parameters": formats_of(model.parameters()), "scores": formats_of([scored])}
    return rewards, formats
