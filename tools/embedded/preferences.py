"""Preference pairs: a passage of real documentation against a damaged version of the same passage.

The hazard is a reward that reads the wrong thing. When rejected texts differ from chosen ones in
length, in their end-of-text token or in one kind of damage alone, a model learns that and nothing
else, and a policy trained on it exploits it. So four kinds of damage are mixed at many strengths;
three of them keep length and closing token, and the fourth, a continuation that the policy sampled
at a high temperature, makes unlikely sampling itself what costs reward.

Legend: a *passage* is a token list that starts with end of text, as a prompt does, and ends with
it where the document ends. N rows, R tokens of the longest row, right-padded with end of text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precision_lib.jsonio import write_json
from tools.embedded.corpus import UNIT_SEPARATOR, Document
from tools.embedded.tokenizer import END_OF_TEXT_ID, PROMPT_TOKENS

SHORTEST = 12  # tokens of a whole short document, so that ending early is not wrong by itself
LENGTHS = (24, 160)  # tokens that a passage is cut to: a prompt's opening and a response
KINDS = ("replace", "shuffle", "repeat", "hot")
TEMPERATURES = (1.25, 1.5, 2.0)
_CHARACTERS = 25 * LENGTHS[1]  # more than the longest passage needs


@dataclass(frozen=True)
class Pair:
    """Token lists of a real passage and of its damaged version; `kind` is one of `KINDS`."""

    kind: str
    chosen: list[int]
    rejected: list[int]


def passages(bpe: Any, documents: Iterable[Document]) -> list[list[int]]:
    """One passage per unit that has at least `SHORTEST` tokens with what follows it.

    Rulers, whose first tokens are almost all the same, are left out.
    """
    texts, whole = [], []
    for document in documents:
        for first in range(len(document.units)):
            text = UNIT_SEPARATOR.join(document.units[first:])
            texts.append(text[:_CHARACTERS])
            whole.append(len(text) <= _CHARACTERS)
    found = []
    for encoding, complete in zip(
        bpe.encode_batch(texts, add_special_tokens=False), whole, strict=True
    ):
        ids = [END_OF_TEXT_ID, *encoding.ids, *([END_OF_TEXT_ID] if complete else [])]
        if len(ids) >= SHORTEST and len(set(ids[:SHORTEST])) > SHORTEST // 2:
            found.append(ids[: LENGTHS[1]])
    return found


def unigram(rows: Sequence[Sequence[int]], vocabulary: int) -> NDArray[np.float64]:
    """Share of each token among `rows`, float64 [vocabulary]; end of text has none."""
    counts = np.bincount(np.concatenate([np.asarray(r) for r in rows]), minlength=vocabulary)
    counts[END_OF_TEXT_ID] = 0
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def damaged(
    kind: str, passage: list[int], shares: NDArray[np.float64], rng: np.random.Generator
) -> list[int]:
    """The passage after `replace`, `shuffle` or `repeat`: same length, same first and last token.

    Draws again until something changed. Raises ValueError for another kind, or a passage whose
    tokens between the ends are too few or all equal.
    """
    functions = {"replace": _replace, "shuffle": _shuffle, "repeat": _repeat}
    if kind not in functions or len(set(passage[1:-1])) < 2:
        raise ValueError(f"cannot damage {len(passage)} tokens by {kind!r}; give a longer passage")
    inner = np.array(passage[1:-1])
    while True:
        changed = functions[kind](inner.copy(), shares, rng)
        if not np.array_equal(changed, inner):
            return [passage[0], *map(int, changed), passage[-1]]


def _replace(
    tokens: NDArray[Any], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[Any]:
    """10 % to 60 % of the tokens become others: frequent ones, or any, with equal chance."""
    count = max(1, round(rng.uniform(0.1, 0.6) * len(tokens)))
    where = rng.choice(len(tokens), size=count, replace=False)
    drawn = rng.choice(len(shares), size=count, p=shares)
    anything = rng.integers(END_OF_TEXT_ID + 1, len(shares), size=count)
    tokens[where] = drawn if rng.random() < 0.5 else anything
    return tokens


def _shuffle(
    tokens: NDArray[Any], _: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[Any]:
    """Windows of 3 to 8 tokens lose their order; 30 % to 100 % of the windows."""
    window, share = int(rng.integers(3, 9)), rng.uniform(0.3, 1.0)
    for start in range(0, len(tokens), window):
        if rng.random() < share:
            tokens[start : start + window] = rng.permutation(tokens[start : start + window])
    return tokens


def _repeat(tokens: NDArray[Any], _: NDArray[np.float64], rng: np.random.Generator) -> NDArray[Any]:
    """A run of 1 to 8 tokens is said again and again over 30 % to 100 % of what follows it."""
    period = int(rng.integers(1, 9))
    start = int(rng.integers(period, max(period + 1, len(tokens) // 2)))
    length = max(1, round(rng.uniform(0.3, 1.0) * (len(tokens) - start)))
    stop = min(start + length, len(tokens))
    tokens[start:stop] = np.resize(tokens[start - period : start], stop - start)
    return tokens


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """tokens [N, R] int64, right-padded with end of text, and lengths [N] int64."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), END_OF_TEXT_ID)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, lengths


@torch.no_grad()
def continuations(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    seed: int,
    temperature: float = 1.0,
    rows: int = 64,
) -> list[list[int]]:
    """Prompt and sampled response of each prompt, ended by its first end of text.

    `prompts` are N token lists; at most `new_tokens` follow. Leaves torch's generator alone; the
    draws depend on `seed` and `rows`.
    """
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for start in range(0, len(prompts), rows):
            batch = prompts[start : start + rows]
            tokens, lengths = padded([list(reversed(prompt)) for prompt in batch])
            attended = torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)
            out = model.generate(
                tokens.flip(1),
                attention_mask=attended.flip(1).long(),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                max_new_tokens=new_tokens,
            )
            for prompt, response in zip(batch, out[:, tokens.shape[1] :].tolist(), strict=True):
                found.append([*prompt, *until_end(response)])
    return found


def until_end(response: list[int]) -> list[int]:
    """The response through its first end of text, or all of it."""
    if END_OF_TEXT_ID in response:
        return response[: response.index(END_OF_TEXT_ID) + 1]
    return response


def hot_pairs(
    model: Any, texts: Sequence[list[int]], count: int, seed: int, rows: int = 64
) -> tuple[Pair, ...]:
    """For `count` passages, the opening of each continued by `model` at one of `TEMPERATURES`.

    A batch of passages has one temperature and one length; passages are visited in random order.
    The opening is 8 to 32 tokens, and at least 4 of the passage follow it.
    """
    rng = np.random.default_rng([seed, len(texts)])
    order = rng.permutation(len(texts))[:count]
    found = []
    for start in range(0, len(order), rows):
        length = int(rng.integers(2 * LENGTHS[0], LENGTHS[1] + 1))
        chosen = [texts[i][:length] for i in order[start : start + rows]]
        low, high = PROMPT_TOKENS
        opened = [c[: int(rng.integers(low, min(high, len(c) - 4) + 1))] for c in chosen]
        sampled = continuations(
            model,
            opened,
            length - low,
            seed=seed * 1_000_003 + start,
            temperature=float(rng.choice(TEMPERATURES)),
            rows=rows,
        )
        found += [Pair("hot", c, s[:length]) for c, s in zip(chosen, sampled, strict=True)]
    return tuple(found)


def batch_at(
    step: int,
    *,
    pairs: int,
    texts: Sequence[list[int]],
    hot: Sequence[Pair],
    shares: NDArray[np.float64],
    seed: int,
) -> list[Pair]:
    """The pairs of one training step, every kind in turn, cut to one random length.

    A function of its arguments alone.
    """
    rng = np.random.default_rng([seed, step])
    length = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
    found = []
    for number in range(pairs):
        kind = KINDS[number % len(KINDS)]
        if kind == "hot":
            pair = hot[int(rng.integers(len(hot)))]
            found.append(Pair(kind, pair.chosen[:length], pair.rejected[:length]))
        else:
            chosen = texts[int(rng.integers(len(texts)))][:length]
            found.append(Pair(kind, chosen, damaged(kind, chosen, shares, rng)))
    return found


def held_out_pairs(
    texts: Sequence[list[int]], hot: Sequence[Pair], shares: NDArray[np.float64], seed: int
) -> list[Pair]:
    """Every passage once per kind, at a random length of its own; `hot` as they are.

    The pairs of one passage stand together, in the order of `KINDS`, those of `hot` at the end.
    """
    found = []
    for number, text in enumerate(texts):
        rng = np.random.default_rng([seed, number, 1])
        chosen = text[: int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))]
        for kind in KINDS[:-1]:
            found.append(Pair(kind, chosen, damaged(kind, chosen, shares, rng)))
    return [*found, *hot]


def small_selection(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """About `count` pairs, the same number of every kind, evenly spaced.

    Kinds take their pairs at different offsets, so that few passages come twice.
    """
    found = []
    for number, kind in enumerate(KINDS):
        those = [pair for pair in pairs if pair.kind == kind]
        stride = max(1, len(those) * len(KINDS) // count)
        found += those[number * stride // len(KINDS) :: stride][: count // len(KINDS)]
    return found


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """JSON list of objects; tokens as numbers in one string, as damage has no text of its own."""
    write_json(
        path,
        [
            {
                "kind": pair.kind,
                "chosen": " ".join(map(str, pair.chosen)),
                "rejected": " ".join(map(str, pair.rejected)),
            }
            for pair in pairs
        ],
    )


def read_pairs(path: Path) -> list[Pair]:
    """What :func:`write_pairs` wrote. Raises KeyError or ValueError for something else."""
    return [
        Pair(row["kind"], _ids(row["chosen"]), _ids(row["rejected"]))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def _ids(text: str) -> list[int]:
    return [int(number) for number in text.split()]
