"""What the embedded model reached: cross-entropy, entropy, and both by position in the context.

The hazard is comparing two models on different tokens. The neural model and the trigram model are
scored on one stream, target by target: every token but the first is predicted exactly once, and the
two loss arrays have the same length and the same order.

Legend: N tokens in the stream. Losses and entropies are natural, in nats per token. Logits are
FP32; log-softmax and means are float64, so the only rounding that matters is the model's own.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

POSITION_EDGES = (0, 64, 128, 256, 512, 1024, 2048)


@torch.no_grad()
def score_stream(model: Any, tokens: NDArray[np.int64], window: int) -> tuple[Floats, Floats]:
    """Losses and prediction entropies of tokens[1:], float64 [N - 1] each.

    Target i is predicted at position (i mod window), from the tokens of its own window alone.
    """
    losses, entropies = [], []
    for start in range(0, len(tokens) - 1, window):
        piece = torch.from_numpy(tokens[start : start + window + 1]).unsqueeze(0)
        log_probs = log_softmax64(model(input_ids=piece[:, :-1], use_cache=False).logits)
        losses.append(-log_probs.gather(-1, piece[:, 1:, None])[0, :, 0])
        entropies.append(entropy64(log_probs)[0])
    return torch.cat(losses).numpy(), torch.cat(entropies).numpy()


def log_softmax64(logits: Tensor) -> Tensor:
    """Natural log-probabilities, float64, same shape."""
    return torch.log_softmax(logits.double(), dim=-1)


def entropy64(log_probs: Tensor) -> Tensor:
    """Entropy in nats over the last dimension of float64 log-probabilities."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def by_position(window: int, **per_target: Floats) -> list[dict[str, float | int]]:
    """Means of each [N - 1] array over ranges of positions, as read off in `score_stream`."""
    size = len(next(iter(per_target.values())))
    position = np.arange(size) % window
    rows = []
    for low, high in itertools.pairwise(POSITION_EDGES):
        inside = (position >= low) & (position < high)
        if inside.any():
            row: dict[str, float | int] = {"first": low, "last": min(high, window) - 1}
            row["tokens"] = int(inside.sum())
            row |= {name: float(values[inside].mean()) for name, values in per_target.items()}
            rows.append(row)
    return rows


@torch.no_grad()
def sample_statistics(
    model: Any, tokenizer: Any, prompts: list[str], *, max_new_tokens: int, samples: int = 4
) -> dict[str, float | int]:
    """Sample `samples` continuations of each prompt at temperature 1 and describe them.

    Entropy is that of the prediction behind each sampled token, the closing end of text included.
    Draws from torch's global generator; the caller seeds it.
    """
    entropies, finished = [], 0
    end = int(tokenizer.eos_token_id)
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        full = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=max_new_tokens,
            num_return_sequences=samples,
        )
        response = full[:, ids.shape[1] :]
        logits = model(input_ids=full[:, :-1], use_cache=False).logits[:, ids.shape[1] - 1 :]
        is_end = response == end
        real = (is_end.cumsum(dim=1) - is_end.long()) == 0
        entropies.append(entropy64(log_softmax64(logits))[real])
        finished += int(is_end.any(dim=1).sum())
    pooled = torch.cat(entropies)
    count = len(prompts) * samples
    return {
        "samples": count,
        "tokens": pooled.numel(),
        "entropy": float(pooled.mean()),
        "mean_response_tokens": pooled.numel() / count,
        "finished_frac": finished / count,
        "max_new_tokens": max_new_tokens,
    }
