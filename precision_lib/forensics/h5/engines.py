"""Rollout engines: the policy in a format, decoding one token after the other from a KV cache.

The hazard. A forward over the whole sequence and a decoder give one token two log-probs, although
weights and format are the same: their products have other shapes, so sums are taken in another
order, and in 16 bits a last bit that falls the other way is as large as the noise itself. So the
engine here really decodes. The tokens are fixed before, so that every engine reports on the same.

N sequences, L tokens of each, T response tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.forwards import response_logits
from precision_lib.forensics.h4.long_sequences import cache_maker
from precision_lib.forensics.probe import MIN_PROMPTS
from precision_lib.formats import format_of
from precision_lib.models.kv_cache import forward_with_cache
from precision_lib.models.rollout_engine import engine_format
from precision_lib.ppo.logprobs import token_logprobs
from precision_lib.scoring.forward import rows_per_forward
from precision_lib.trajectories.sampling import Responses


@dataclass(frozen=True)
class H5Settings:
    """What H5 measures on.

    Attributes:
        sequences: drawn from the FP32 policy; what decides.
        length: tokens of a sequence behind a start token, that included, or of a prompt's response
            and one more; fewer where the model has no positions for them.
        checked: of them, on which all formats are compared and the batch variance is taken.
        opening: of the checked ones, tokens that are looked at, counted in the same way.
        seed: of tokens and resampling.
    """

    sequences: int = 24
    length: int = 384
    checked: int = 8
    opening: int = 33
    seed: int = 0

    def __post_init__(self) -> None:
        if not MIN_PROMPTS <= self.checked <= self.sequences:
            raise ValueError(
                f"checked = {self.checked} of sequences = {self.sequences}: an interval over "
                f"sequences needs at least {MIN_PROMPTS}, and no more are there"
            )
        if not 2 <= self.opening <= self.length:
            raise ValueError(f"opening = {self.opening} must be 2 to length = {self.length}")
        if self.length < 32:
            raise ValueError(f"length = {self.length}: growth along 32 tokens is the least to fit")


#: A few seconds, for a first look and for tests of the suite itself.
QUICK = H5Settings(sequences=8, length=64, opening=33)


@dataclass(frozen=True)
class Reported:
    """What an engine reported.

    Attributes:
        logprobs: temperature to [N, T] FP32 log-probs of the response tokens, on the CPU.
        fmt: format of the engine, as observed.
        head: format of its logits, as observed.
    """

    logprobs: dict[float, Tensor]
    fmt: str
    head: str


@torch.no_grad()
def decode(
    model: Any,
    responses: Responses,
    rows: int,
    *,
    reverse: bool = False,
    temperatures: tuple[float, ...] = (1.0,),
) -> Reported:
    """Log-probs that ``model`` reports for given tokens, as it would while it draws them.

    Log-softmax is FP32, as engines compute it. Call it inside ``runtime.deterministic``. Of the
    prompts, as many tokens as the shortest of a batch has go through the model at once.

    Args:
        rows: sequences that are decoded together.
        reverse: take the sequences in the opposite order; the result is put back in order.
        temperatures: logits are divided by each, in FP32.
    """
    order = torch.arange(len(responses.tokens))
    order = order.flip(0) if reverse else order
    parts: list[Tensor] = []
    seen = "", ""
    for _, batch in responses.micro_batches(rows, order):
        starts = batch.prompt_lengths.cpu()
        cache, first, steps = cache_maker(model)(), 0, []
        for position in range(int(starts.min()), int(starts.max()) + batch.length):
            ids = batch.tokens[:, first:position]
            logits, cache = forward_with_cache(model, cache, input_ids=ids)
            wide = logits[:, -1:].float()
            chosen = batch.tokens[:, position : position + 1]
            steps.append(
                torch.stack([token_logprobs(wide / t, chosen).squeeze(1) for t in temperatures])
            )
            first = position
        seen = engine_format(model), format_of(logits.dtype).name
        of_response = (starts - starts.min()).unsqueeze(1) + torch.arange(batch.length)
        reported = torch.stack(steps, dim=2).cpu()
        parts.append(reported.gather(2, of_response.expand(len(reported), -1, -1)))
    logprobs = torch.cat(parts, dim=1)[:, torch.argsort(order)]
    return Reported(dict(zip(temperatures, logprobs, strict=True)), *seen)


@torch.no_grad()
def collision(
    model: Any, responses: Responses, temperatures: tuple[float, ...]
) -> dict[float, Tensor]:
    """Temperature to [N, T] float64 sum of the squared probabilities of all tokens, on the CPU.

    The chance that two tokens drawn there are the same.
    """
    parts: dict[float, list[Tensor]] = {t: [] for t in temperatures}
    rows = rows_per_forward(responses.tokens.shape[1], model)
    for _, batch in responses.micro_batches(rows):
        logits, _ = response_logits(model, batch)
        for temperature, chunks in parts.items():
            p = torch.softmax(logits.float() / temperature, -1)
            chunks.append(p.square().sum(-1).double().cpu())
    return {t: torch.cat(chunks) for t, chunks in parts.items()}
