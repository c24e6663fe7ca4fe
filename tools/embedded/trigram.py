"""The baseline that the embedded model has to beat: an interpolated trigram language model.

The hazard is a straw man. "Half a nat better than a trigram model" means nothing when the trigram
model is weak, so this one is interpolated modified Kneser-Ney (Chen and Goodman 1999, "An empirical
study of smoothing techniques for language modeling"), the strongest of the classical ones, and it
is scored on exactly the tokens that the neural model is scored on.

Legend: `u v w` are consecutive tokens, V is the vocabulary size, c() counts occurrences and
n() counts distinct left neighbours (how many different tokens precede the sequence).

    p(w | u v) = max(c(uvw) - D(c), 0) / c(uv.) + g(uv) p(w | v)
    p(w | v)   = max(n(vw) - D'(n), 0) / n(v.)  + g'(v) p(w)
    p(w)       = max(n(w) - D''(n), 0) / n(.)   + g''   / V

g is the mass that the discounts took away, so every line is a proper distribution over w. A context
that never occurred has g = 1 and passes on to the next line. All arithmetic is float64; a
probability is off by a few units of 2^-53, far below the third decimal of a cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_VOCABULARY = 2**20  # three tokens must fit into one signed 64-bit code


@dataclass(frozen=True)
class Order:
    """One line of the model: n-gram codes and, per context code, its total and its left-over mass.

    `grams` and `contexts` are sorted int64 codes, a context being a gram without its last token.
    `discounted` [grams] holds max(count - D, 0), `totals` and `leftover` [contexts] are float64.
    """

    grams: Ints
    discounted: Floats
    contexts: Ints
    totals: Floats
    leftover: Floats


@dataclass(frozen=True)
class Trigram:
    """A fitted model; `orders` are unigram, bigram and trigram."""

    vocabulary: int
    orders: tuple[Order, Order, Order]


def fit_trigram(tokens: NDArray[Any], vocabulary: int) -> Trigram:
    """Count and smooth. `tokens` [N] are integers in [0, vocabulary), N >= 3, in reading order.

    Raises ValueError for a stream that is too short, or holds tokens outside the vocabulary.
    """
    stream = _checked(tokens, vocabulary, at_least=3)
    trigram_codes = (stream[:-2] * vocabulary + stream[1:-1]) * vocabulary + stream[2:]
    trigrams, trigram_counts = np.unique(trigram_codes, return_counts=True)
    bigrams, bigram_counts = np.unique(trigrams % vocabulary**2, return_counts=True)
    unigrams, unigram_counts = np.unique(bigrams % vocabulary, return_counts=True)
    return Trigram(
        vocabulary,
        (
            _order(unigrams, unigram_counts, vocabulary),
            _order(bigrams, bigram_counts, vocabulary),
            _order(trigrams, trigram_counts, vocabulary),
        ),
    )


def _order(grams: Ints, counts: Ints, vocabulary: int) -> Order:
    discounts = _discounts(counts)
    taken = np.minimum(discounts[np.minimum(counts, 3)], counts)
    contexts, index = np.unique(grams // vocabulary, return_inverse=True)
    totals = np.bincount(index, weights=counts).astype(np.float64)
    leftover = np.bincount(index, weights=taken) / totals
    return Order(grams, (counts - taken).astype(np.float64), contexts, totals, leftover)


def _discounts(counts: Ints) -> Floats:
    """D(0..3+) by the closed form of Chen and Goodman; 0.5 where a count of counts is empty."""
    n1, n2, n3, n4 = (float(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0.0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    raw = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    limits = np.array([0.0, 1.0, 2.0, 3.0])
    discounts: Floats = np.minimum(np.maximum(np.array(raw), 0.0), limits)
    return discounts


def token_probabilities(model: Trigram, contexts: NDArray[Any], tokens: NDArray[Any]) -> Floats:
    """p(tokens[i] | contexts[i]), float64 [N]; `contexts` is [N, 2], `tokens` [N], all integers."""
    v = model.vocabulary
    pairs = np.asarray(contexts, dtype=np.int64)
    words = np.asarray(tokens, dtype=np.int64)
    if pairs.shape != (*words.shape, 2):
        raise ValueError(f"contexts must be [N, 2] for {words.shape} tokens, got {pairs.shape}")
    probability = np.full(words.shape, 1.0 / v)
    for order, context in zip(
        model.orders,
        (np.zeros_like(words), pairs[:, 1], pairs[:, 0] * v + pairs[:, 1]),
        strict=True,
    ):
        mass = _lookup(order.grams, order.discounted, context * v + words, 0.0)
        total = _lookup(order.contexts, order.totals, context, 1.0)
        leftover = _lookup(order.contexts, order.leftover, context, 1.0)
        probability = mass / total + leftover * probability
    return probability


def _lookup(keys: Ints, values: Floats, wanted: Ints, missing: float) -> Floats:
    position = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[position] == wanted, values[position], missing)


def token_losses(model: Trigram, tokens: NDArray[Any]) -> Floats:
    """-log p of tokens[1:] in nats, float64 [N - 1]: the same targets as a causal model's.

    The first target has one token of context; the token before it is taken to be tokens[0] again,
    which is what a document's first token sees when tokens[0] ends the text before it.
    """
    stream = _checked(tokens, model.vocabulary, at_least=2)
    padded = np.concatenate([stream[:1], stream])
    contexts = np.stack([padded[:-2], padded[1:-1]], axis=1)
    losses: Floats = -np.log(token_probabilities(model, contexts, stream[1:]))
    return losses


def _checked(tokens: NDArray[Any], vocabulary: int, *, at_least: int) -> Ints:
    stream = np.asarray(tokens, dtype=np.int64)
    if not 0 < vocabulary <= MAX_VOCABULARY:
        raise ValueError(f"vocabulary must be in 1..{MAX_VOCABULARY}, got {vocabulary}")
    if stream.ndim != 1 or len(stream) < at_least:
        raise ValueError(f"need a flat stream of at least {at_least} tokens, got {stream.shape}")
    if stream.min() < 0 or stream.max() >= vocabulary:
        raise ValueError(
            f"tokens must be in 0..{vocabulary - 1}, got {stream.min()}..{stream.max()};"
            " encode them with the tokenizer of this vocabulary"
        )
    return stream
