"""What the embedded reward model and value head reached: accuracy, scores, explained variance.

The hazard is a figure on easy pairs. Accuracy is given by kind of damage and by length, not only in
all, and scores are described on three sorts of text: real, damaged, and the policy's own samples,
which are what PPO sees. Own samples at several temperatures show whether a policy can earn reward
by sampling more carefully, which a reward that PPO is to raise must allow.

Scores are log odds of the Bradley-Terry model: a difference of 1 is a preference of 73 %.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precision_lib.models.reward_model import score_tokens
from precision_lib.models.value_head import (
    ValueHead,
    explained_variance,
    fit_value_head,
    predict_values,
)
from tools.embedded.preferences import LENGTHS, SHORTEST, Pair, continuations, padded

Floats = NDArray[np.float64]

LENGTH_EDGES = (SHORTEST, LENGTHS[0], 48, 80, 120, LENGTHS[1] + 1)
SAMPLE_TEMPERATURES = (0.7, 1.0, 1.25, 1.5)
RESPONSE_TOKENS = 64


@torch.no_grad()
def scores_of(model: Any, rows: Sequence[Sequence[int]], batch: int = 64) -> Floats:
    """Scores of N token lists, float64 [N]."""
    found = []
    for start in range(0, len(rows), batch):
        tokens, lengths = padded(rows[start : start + batch])
        found.append(score_tokens(model, tokens, lengths))
    scores: Floats = torch.cat(found).double().numpy()
    return scores


def spread(scores: Floats) -> dict[str, float | int]:
    """Mean and sample standard deviation."""
    return {"count": len(scores), "mean": float(scores.mean()), "std": float(scores.std(ddof=1))}


def pair_figures(model: Any, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Pairwise accuracy, in all, by kind and by length, and the scores of both sides.

    A pair counts as right when the chosen passage has the higher score; a tie is wrong.
    """
    chosen = scores_of(model, [pair.chosen for pair in pairs])
    rejected = scores_of(model, [pair.rejected for pair in pairs])
    right = chosen > rejected
    kinds = np.array([pair.kind for pair in pairs])
    lengths = np.array([len(pair.chosen) for pair in pairs])
    by_kind = {
        str(kind): {
            "accuracy": float(right[kinds == kind].mean()),
            "rejected": spread(rejected[kinds == kind]),
        }
        for kind in dict.fromkeys(kinds)
    }
    by_length = []
    for low, high in itertools.pairwise(LENGTH_EDGES):
        inside = (lengths >= low) & (lengths < high)
        if inside.any():
            row = {"first": low, "last": high - 1, "pairs": int(inside.sum())}
            by_length.append(row | {"accuracy": float(right[inside].mean())})
    return {
        "pairs": len(pairs),
        "accuracy": float(right.mean()),
        "by_kind": by_kind,
        "by_length": by_length,
        "chosen": spread(chosen),
        "rejected": spread(rejected),
    }


def sample_figures(
    reward: Any, policy: Any, prompts: Sequence[list[int]], seed: int
) -> list[dict[str, Any]]:
    """Scores of the policy's own responses to each prompt, by temperature."""
    rows = []
    for temperature in SAMPLE_TEMPERATURES:
        sampled = continuations(
            policy, prompts, RESPONSE_TOKENS, seed=seed, temperature=temperature
        )
        responses = [len(s) - len(p) for s, p in zip(sampled, prompts, strict=True)]
        row: dict[str, Any] = {"temperature": temperature} | spread(scores_of(reward, sampled))
        row["mean_response_tokens"] = float(np.mean(responses))
        rows.append(row)
    return rows


@dataclass(frozen=True)
class States:
    """M states in which response tokens were chosen, each with its return.

    hidden [M, H] FP32, returns [M] FP32, sequence [M] int64: the number of its sequence.
    """

    hidden: Tensor
    returns: Tensor
    sequence: Tensor


@torch.no_grad()
def response_states(
    policy: Any, sequences: Sequence[list[int]], prompt_lengths: Sequence[int], scores: Floats
) -> States:
    """The state before each response token, and its return: the score of the whole sequence.

    gamma is 1 and there is no KL penalty, so every token of a sequence has the same return. The
    state of token t is the trunk's output (after the final norm) at position t - 1.
    """
    hidden, numbers = [], []
    for start in range(0, len(sequences), 64):
        tokens, lengths = padded(sequences[start : start + 64])
        trunk = policy.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        first = torch.tensor(prompt_lengths[start : start + 64]) - 1
        position = torch.arange(tokens.shape[1])
        real = (position >= first.unsqueeze(1)) & (position < (lengths - 1).unsqueeze(1))
        hidden.append(trunk[real])
        numbers.append(start + real.nonzero()[:, 0])
    sequence = torch.cat(numbers)
    return States(torch.cat(hidden), torch.from_numpy(scores).float()[sequence], sequence)


def fit_embedded_value_head(
    policy: Any,
    reward: Any,
    train_prompts: Sequence[list[int]],
    held_out_prompts: Sequence[list[int]],
    samples: int,
    seed: int,
) -> tuple[ValueHead, dict[str, Any]]:
    """Fit a value head after training prompts; returns it with its figures there and held out.

    One response per training prompt, because what 257 numbers have to learn is the difference
    between prompts; `samples` per held-out one. The best of them says what a policy can gain:
    choosing the best of n costs at most log n - (n - 1) / n nats of KL.
    """
    figures: dict[str, Any] = {"response_tokens": RESPONSE_TOKENS}
    part: dict[str, States] = {}
    for name, prompts, count in (
        ("fitted", train_prompts, 1),
        ("held_out", held_out_prompts, samples),
    ):
        repeated = [prompt for prompt in prompts for _ in range(count)]
        sequences = continuations(policy, repeated, RESPONSE_TOKENS, seed=seed + len(part))
        scores = scores_of(reward, sequences)
        part[name] = response_states(policy, sequences, [len(p) for p in repeated], scores)
        figures[name] = {"prompts": len(prompts), "samples_per_prompt": count}
        figures[name]["scores"] = spread(scores)
        best = scores.reshape(len(prompts), count).max(1).mean()
        figures[name]["mean_of_best_score_per_prompt"] = float(best)
    head = fit_value_head(part["fitted"].hidden, part["fitted"].returns)
    for name, states in part.items():
        prompt = states.sequence // figures[name]["samples_per_prompt"]
        figures[name] |= value_figures(head, states, prompt)
    return head, figures


def value_figures(head: ValueHead, states: States, prompt: Tensor) -> dict[str, Any]:
    """Explained variance with its standard error, and the spread of returns and values."""
    values = predict_values(states.hidden, head.weight, head.bias, "fp32")
    return {
        "tokens": len(values),
        "explained_variance": explained_variance(values, states.returns),
        "standard_error": explained_variance_error(values, states.returns, prompt),
        "returns": spread(states.returns.double().numpy()),
        "values": spread(values.double().numpy()),
    }


def explained_variance_error(
    values: Tensor, returns: Tensor, prompt: Tensor, resamples: int = 1000
) -> float:
    """Bootstrap standard error of the explained variance, over prompts.

    Tokens of one prompt share their return and are not independent. values, returns [M] and
    prompt [M] int64, the number of each state's prompt. A resample in which all returns are one
    number says nothing and is left out; only a handful of prompts has such.
    """
    g, error = returns.double(), (returns.double() - values.double()).square()
    counts = torch.stack([torch.ones_like(g), g, g.square(), error])
    sums = torch.zeros(4, int(prompt.max()) + 1, dtype=torch.float64)
    per_prompt = sums.index_add_(1, prompt, counts).numpy()
    rng = np.random.default_rng(0)
    drawn = rng.integers(per_prompt.shape[1], size=(resamples, per_prompt.shape[1]))
    n, total, squares, errors = per_prompt[:, drawn].sum(-1)
    variances = squares - total**2 / n
    varied = variances > 0
    return float((1 - errors[varied] / variances[varied]).std(ddof=1))
