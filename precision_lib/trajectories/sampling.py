"""Sample responses once, in FP32, so that every configuration scores the same tokens.

The hazard. Two configurations that sample for themselves differ in their tokens after a few
steps, and then nothing about their log-probs can be compared. So tokens are drawn once, from the
FP32 reference, by inverse transform from uniform numbers that depend on the seed alone: not on
the batch, the device or the order of the draws. The probabilities do depend on them: on a GPU the
logits of a row differ in the last bits with the batch's shape, and a uniform number that lies
between the two sums draws another token there.

An end-of-text token does not end a response while it is drawn: the next document begins. So every
response has exactly the length asked for, and every token is a draw from the model's full
distribution, which forbidding the token would not leave true. Who wants responses to end there
(freeze does, unless ``ignore_eos``) cuts them afterwards: :func:`response_lengths`.

N sequences, P prompt tokens at most, T response tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.models.kv_cache import forward_with_cache
from precision_lib.models.loading import Checkpoint
from precision_lib.trajectories.transfer import moved


@dataclass(frozen=True)
class Responses:
    """Prompts with responses of one length.

    Attributes:
        tokens: [N, P + T] int64, prompt then response, right-padded with ``pad``.
        prompt_lengths: [N] int64.
        length: T, response tokens of every sequence.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    length: int

    @property
    def mask(self) -> Tensor:
        """[N, P + T] bool, True for a response token. Shift it with the tokens: mask[:, 1:]."""
        position = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        start = self.prompt_lengths.unsqueeze(1)
        return (position >= start) & (position < start + self.length)

    def to(self, device: torch.device) -> "Responses":
        """The same on ``device``."""
        tokens, prompt_lengths = moved(device, self.tokens, self.prompt_lengths)
        return Responses(tokens, prompt_lengths, self.length)

    def micro_batches(
        self, rows: int, order: Tensor | None = None
    ) -> Iterator[tuple[Tensor, "Responses"]]:
        """(row numbers, those rows) in batches of ``rows``, in ``order`` (default: as stored)."""
        order = torch.arange(len(self.tokens)) if order is None else order
        for rows_here in torch.split(order, rows):
            yield (
                rows_here,
                Responses(
                    self.tokens[rows_here.to(self.tokens.device)],
                    self.prompt_lengths[rows_here.to(self.tokens.device)],
                    self.length,
                ),
            )


def sample_responses(
    model: Any,
    prompts: list[list[int]],
    length: int,
    *,
    seed: int,
    pad: int = 0,
    rows: int = 32,
    new_cache: Callable[[], Any] = lambda: None,
) -> Responses:
    """The responses of :func:`sample_and_report` without their log-probs."""
    return sample_and_report(
        model, prompts, length, seed=seed, pad=pad, rows=rows, new_cache=new_cache
    )[0]


def sample_and_report(
    model: Any,
    prompts: list[list[int]],
    length: int,
    *,
    seed: int,
    pad: int = 0,
    rows: int = 32,
    new_cache: Callable[[], Any] = lambda: None,
) -> tuple[Responses, Tensor]:
    """Sample ``length`` tokens after each prompt at temperature 1; the results are on the host.

    Args:
        model: causal LM; its forward is called with a KV cache.
        prompts: N token lists, none empty.
        seed: of the uniform numbers.
        pad: token that fills the right side.
        rows: sequences per forward; it does not change which numbers are used.
        new_cache: makes the empty KV cache of a batch; None leaves its kind to the model.

    Returns:
        Responses, and [N, T] FP32 log-probs of their tokens, nats, as the sampler reports them:
        from the logits of the KV-cached decoding, log-softmax in float64, rounded once.

    Raises:
        ValueError: for no prompt, an empty one, or a sequence beyond the model's positions.
        FloatingPointError: logits with NaN or +inf, from which nothing can be drawn.
    """
    longest = _longest(model, prompts, length)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(prompts), length, dtype=torch.float64, generator=generator)
    tokens = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    reported = torch.empty(len(prompts), length)
    for start in range(0, len(prompts), rows):
        batch = prompts[start : start + rows]
        drawn, logprobs = _sample_batch(model, batch, uniform[start : start + rows], new_cache())
        reported[start : start + rows] = logprobs
        for row, (prompt, response) in enumerate(zip(batch, drawn, strict=True), start):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
            tokens[row, len(prompt) : len(prompt) + length] = response
    return Responses(tokens, torch.tensor([len(p) for p in prompts]), length), reported


def _longest(model: Any, prompts: list[list[int]], length: int) -> int:
    """Tokens of the longest sequence; ValueError where nothing can be drawn or positions lack."""
    if not prompts or any(not p for p in prompts) or length < 1:
        raise ValueError(
            f"nothing to sample: {len(prompts)} prompts, "
            f"{sum(not p for p in prompts)} of them empty, {length} tokens"
        )
    longest = max(map(len, prompts)) + length
    positions = getattr(model.config, "max_position_embeddings", longest)
    if longest > positions:
        raise ValueError(
            f"prompt and response take {longest} tokens, the model has {positions} positions; "
            "use shorter --seq_lengths or fewer --max_new_tokens"
        )
    return longest


@torch.no_grad()
def _sample_batch(
    model: Any, prompts: list[list[int]], uniform: Tensor, cache: Any
) -> tuple[Tensor, Tensor]:
    """[n, T] int64 tokens and [n, T] FP32 log-probs, on the CPU.

    Prompts are padded on the left; each step adds a token from the KV cache.
    """
    width, length = max(map(len, prompts)), uniform.shape[1]
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    attended = torch.ones(len(prompts), width + length, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attended[row, : width - len(prompt)] = 0
    ids, attended = moved(model.device, ids, attended)
    positions = (attended.cumsum(1) - 1).clamp(min=0)
    drawn, reported = [], []
    for step in range(length):  # the host waits twice: logits come down, drawn tokens go up
        seen = width + step
        logits, cache = forward_with_cache(
            model,
            cache,
            input_ids=ids.to(model.device),
            attention_mask=attended[:, :seen],
            position_ids=positions[:, seen - ids.shape[1] : seen],
        )
        ids, logprobs = _draw(logits[:, -1].cpu(), uniform[:, step])
        drawn.append(ids)
        reported.append(logprobs)
    return torch.cat(drawn, dim=1), torch.cat(reported, dim=1)


def _draw(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse transform: the first token whose cumulative probability exceeds ``uniform``.

    logits [n, V] and uniform [n] in [0, 1); returns [n, 1] tokens and [n, 1] FP32 log-probs.
    """
    probabilities = torch.softmax(logits.double(), dim=-1)
    cumulative = probabilities.cumsum(-1)
    broken = int(cumulative[:, -1].isnan().sum())
    if broken:
        raise FloatingPointError(
            f"the logits of {broken} of {len(logits)} sequences hold NaN or +inf: the model's "
            "numbers have left its format"
        )
    target = uniform.unsqueeze(1) * cumulative[:, -1:]  # the last sum is 1 only up to rounding
    tokens = torch.searchsorted(cumulative, target, right=True)
    return tokens, probabilities.gather(1, tokens).log().float()


def end_tokens(checkpoint: Checkpoint) -> frozenset[int]:
    """Tokens that end a response: the tokenizer's end-of-text and the model's own list of them."""
    ends: set[int] = set()
    generation = getattr(checkpoint.model, "generation_config", None)
    for ids in (checkpoint.tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)):
        if ids is not None:
            ends |= {ids} if isinstance(ids, int) else set(ids)
    return frozenset(ends)


def response_lengths(responses: Responses, ends: frozenset[int]) -> Tensor:
    """[N] int64: response tokens up to and including the first end token, all if there is none.

    The cut comes after the draw, so that no sequence changes the random numbers of another.
    """
    tokens = responses.tokens[responses.mask].view(len(responses.tokens), responses.length)
    is_end = torch.isin(tokens, torch.tensor(sorted(ends), dtype=torch.int64, device=tokens.device))
    first = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, responses.length)
    return first.to(torch.int64)
