"""What a model says of tokens that somebody else sampled: log-prob, entropy, and the place.

The hazard. Sequences of thousands of tokens over a large vocabulary do not fit into one forward:
neither the logits [L, V] nor the attention scores [L, L] do. So a long sequence goes in pieces
behind a KV cache, which changes the last bits of its figures, and a short one goes whole.

n rows, L tokens of the longest, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.models.kv_cache import forward_with_cache
from precision_lib.ppo.logprobs import token_logprobs
from precision_lib.scoring.forward import next_token_logits, rows_per_forward

#: Tokens of a piece at least, however large the vocabulary: smaller pieces only read the weights
#: more often.
PIECE = 128


@dataclass(frozen=True)
class Figures:
    """Figures of one sequence's tokens 1 to L - 1, or of more than one sequence's; FP32, CPU.

    Attributes:
        logprobs: log-prob of the token that is there, nats.
        entropy: of the distribution that predicts it, nats.
        above: probability of all tokens that are more likely there.
    """

    logprobs: Tensor
    entropy: Tensor
    above: Tensor


@torch.no_grad()
def figures_of_tokens(
    model: Any,
    sequences: Sequence[Tensor],
    temperature: float = 1.0,
    progress: Callable[[int], object] = lambda tokens: None,
) -> list[Figures]:
    """The figures of every sequence, in its order; log-softmax in FP32.

    Args:
        model: causal LM; its parameters' format is the format of the forward.
        sequences: N tensors [L] int64 of at least two tokens: prompt and response, no padding.
        temperature: what the logits are divided by, in FP32.
        progress: called with the number of tokens after each forward.
    """
    results: dict[int, Figures] = {}
    for chosen in _micro_batches(model, sequences):
        rows = [sequences[number] for number in chosen]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        parts = []
        for logits, targets in _pieces(model, tokens.to(model.device)):
            parts.append(_figures(logits, targets, temperature))
            progress(logits.shape[1] * len(rows))
        joined = [torch.cat([getattr(p, n) for p in parts], 1) for n in vars(parts[0])]
        for at, number in enumerate(chosen):
            length = len(sequences[number]) - 1
            results[number] = Figures(*(x[at, :length].clone() for x in joined))
    return [results[number] for number in range(len(sequences))]


def _micro_batches(model: Any, sequences: Sequence[Tensor]) -> Iterator[list[int]]:
    """Numbers of sequences of about one length, the longest first."""
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    while order:
        rows = rows_per_forward(len(sequences[order[0]]), model)
        yield order[:rows]
        order = order[rows:]


def _pieces(model: Any, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits [n, l, V], tokens [n, l] that they predict), from the first on.

    ``tokens`` [n, L] are right-padded: under causal attention no real token sees a later pad.
    """
    rows, length = tokens.shape
    piece = max(PIECE, rows_per_forward(1, model) // rows)
    if length <= piece:
        yield next_token_logits(model, tokens)[:, :-1], tokens[:, 1:]
        return
    cache: Any = None
    for start in range(0, length - 1, piece):
        end = min(start + piece, length - 1)
        logits, cache = forward_with_cache(model, cache, input_ids=tokens[:, start:end])
        yield logits.to(tokens.device), tokens[:, start + 1 : end + 1]


def _figures(logits: Tensor, targets: Tensor, temperature: float) -> Figures:
    logprobs = token_logprobs(logits, targets, torch.float32, temperature)
    p = torch.softmax(logits.float() / temperature, -1)
    own = p.gather(-1, targets.unsqueeze(-1))
    above = torch.where(p > own, p, 0.0).sum(-1)
    return Figures(logprobs.cpu(), torch.special.entr(p).sum(-1).cpu(), above.cpu())
