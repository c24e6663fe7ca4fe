"""Logits and tokens for token_logprobs and entropy.

The hazard. Every textbook form of log-softmax is right on N(0, 1) logits. They part on a common
offset (``gather - logsumexp`` cancels), on a -inf logit (0 times -inf in the entropy), on a peak
(the log-prob of the peak is a tiny number next to 1), at the largest numbers (the difference of
two logits overflows), and on a long flat row (an in-order sum of 150,000 equal terms drifts).

B sequences, T tokens, V vocabulary; the makers see N = B T rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.cases import Region
from precision_lib.conformance.strategies.primitives import Build, Draws, Vector, region

VOCABULARIES = (2, 3, 5, 8, 17, 50, 128, 300)
FLAT_VOCABULARIES = (2, 3, 17, 300, 1000, 2000)
#: Qwen2.5, the largest vocabulary in common use.
LARGE_VOCABULARY = 151_936
#: Below the maximum by these, no exp of which is a sum of few powers of two.
FLAT_DEPTHS = (0.3, 0.1, 0.7, 1.3, 2.7)

#: Elements drawn explicitly: logits are the only vector of a case, so it may have more of them.
COORDINATES = 16

Logits = Callable[[Draws, int, int], Vector]  # (draws, N, V) -> [N, V]
Tokens = Callable[[Draws, Vector], NDArray[np.int64]]  # (draws, logits [N, V]) -> [N]


def _ordinary(draws: Draws, rows: int, size: int) -> Vector:
    x = 2.0 ** draws.integer("log2_scale", -3, 4) * draws.units("logits", rows * size, COORDINATES)
    return draws.planted(x).reshape(rows, size)


def _large_offset(draws: Draws, rows: int, size: int) -> Vector:
    offset = 10_000.0 - draws.integer("below_10000", 0, 9_900)
    step = float(draws.ulps(offset))
    widest = max(1, round(np.log2(4 / step)))
    spread = step * 2.0 ** draws.integer("log2_spread_in_ulps", -1, widest)
    x = offset + spread * draws.units("logits", rows * size, COORDINATES)
    return draws.sign("sign") * x.reshape(rows, size)


def _minus_inf(draws: Draws, rows: int, size: int) -> Vector:
    x = _ordinary(draws, rows, size)
    count = draws.integer("excluded", 1, size - 1)
    order = np.argsort(draws.normal(rows * size).reshape(rows, size), axis=1, kind="stable")
    np.put_along_axis(x, order[:, :count], -np.inf, axis=1)
    return x


def _confident(draws: Draws, rows: int, size: int) -> Vector:
    x = draws.units("logits", rows * size, COORDINATES).reshape(rows, size)
    x -= x.max(axis=1, keepdims=True)
    x[np.arange(rows), draws.indices("peaks", rows, size)] = float(draws.integer("gap", 5, 120))
    return x


def _near_overflow(draws: Draws, rows: int, size: int) -> Vector:
    largest = draws.fmt.largest
    if draws.choice("tied_at_the_top", (True, False)):
        x = largest - draws.ulps(largest) * np.rint(
            np.abs(draws.units("ulps", rows * size, COORDINATES))
        )
    else:
        x = largest * draws.bounded("logits", rows * size, COORDINATES)
    return draws.sign("sign") * x.reshape(rows, size)


def _subnormal(draws: Draws, rows: int, size: int) -> Vector:
    below = draws.integer("halvings", 0, draws.fmt.significand_bits - 1)
    top = 2.0 * draws.fmt.smallest_normal * 2.0**-below
    return top * draws.bounded("logits", rows * size, COORDINATES).reshape(rows, size)


def _flat(draws: Draws, rows: int, size: int) -> Vector:
    x = np.full((rows, size), -draws.choice("depth", FLAT_DEPTHS))
    x[np.arange(rows), draws.indices("peaks", rows, size)] = 0.0
    return x


def _ties(draws: Draws, rows: int, size: int) -> Vector:
    step = draws.choice("step", (1.0, 0.25, 1 / 3))
    x = step * np.rint(2 * draws.units("logits", rows * size, COORDINATES).reshape(rows, size))
    row = np.arange(rows)
    top = x.argmax(axis=1)
    x[row, (top + 1) % size] = x[row, top]
    return x


def _large_vocabulary(draws: Draws, rows: int, size: int) -> Vector:
    kind = draws.choice("kind", ("flat", "gaussian", "offset"))
    if kind == "flat":
        return _flat(draws, rows, size)
    if kind == "offset":
        return _large_offset(draws, rows, size)
    scale = 2.0 ** draws.integer("log2_scale", 0, 2)
    return scale * draws.units("logits", rows * size, COORDINATES).reshape(rows, size)


def _any_token(draws: Draws, logits: Vector) -> NDArray[np.int64]:
    return draws.indices("tokens", *logits.shape)


def _peak_or_any(draws: Draws, logits: Vector) -> NDArray[np.int64]:
    rows = len(logits)
    off_peak = draws.indices("off_peak", rows, 2).astype(np.bool_)
    return np.where(off_peak, _any_token(draws, logits), logits.argmax(axis=1))


def _finite_token(draws: Draws, logits: Vector) -> NDArray[np.int64]:
    """Tokens of finite logit; in one case out of four the first token's logit is -inf."""
    tokens = _any_token(draws, logits)
    for n, row in enumerate(logits):
        possible = np.flatnonzero(np.isfinite(row))
        tokens[n] = possible[tokens[n] % possible.size]
    if draws.choice("token_of_zero_probability", (False, False, False, True)):
        tokens[0] = np.flatnonzero(np.isinf(logits[0]))[0]
    return tokens


@dataclass(frozen=True)
class _Family:
    """What the region of token_logprobs and that of entropy have in common."""

    meaning: str
    logits: Logits
    tokens: Tokens = _any_token
    max_shape: tuple[int, int] = (3, 8)
    vocabularies: tuple[int, ...] = VOCABULARIES
    cost: float = 1.0

    def build(self, *, with_tokens: bool) -> Build:
        def inputs(draws: Draws) -> Arguments:
            sequences = draws.integer("B", 1, self.max_shape[0])
            length = draws.integer("T", 1, self.max_shape[1])
            size = draws.choice("V", self.vocabularies)
            logits = self.logits(draws, sequences * length, size)
            made: Arguments = {"logits": draws.tensor(logits).reshape(sequences, length, size)}
            if with_tokens:
                tokens = torch.from_numpy(self.tokens(draws, logits))
                made["tokens"] = tokens.reshape(sequences, length)
            return made

        return inputs


_FAMILIES = {
    "ordinary": _Family(
        "logits of spread 1/8 to 16, the case that every core gets right", _ordinary
    ),
    "large_offset": _Family(
        "all logits share an offset of up to 1e4, a few units in the last place apart: "
        "token minus log-sum-exp cancels",
        _large_offset,
    ),
    "minus_inf": _Family(
        "some logits are -inf, a legal probability of 0: 0 times -inf is NaN",
        _minus_inf,
        _finite_token,
    ),
    "confident": _Family(
        "one logit leads by 5 to 120: its log-prob is a tiny number next to 1, the other "
        "probabilities vanish in FP32 from 104 on",
        _confident,
        _peak_or_any,
    ),
    "near_overflow": _Family(
        "logits up to the largest number of the format: exp, and differences of logits, overflow",
        _near_overflow,
    ),
    "subnormal": _Family(
        "logits around the smallest normal number: flushing or scaling loses them", _subnormal
    ),
    "flat": _Family(
        "one maximum above up to 2,000 equal logits: an in-order or low-precision sum drifts",
        _flat,
        _peak_or_any,
        max_shape=(1, 2),
        vocabularies=FLAT_VOCABULARIES,
    ),
    "ties": _Family("several logits share the maximum: it must be counted as often", _ties),
    "large_vocabulary": _Family(
        "V = 151,936: the error of the sum grows with the length of the row",
        _large_vocabulary,
        max_shape=(1, 2),
        vocabularies=(LARGE_VOCABULARY,),
        cost=0.05,
    ),
    "many_rows": _Family(
        "up to 900 rows of a vocabulary of 8: work in pieces has a last, shorter one",
        _ordinary,
        max_shape=(3, 300),
        vocabularies=(8,),
        cost=0.2,
    ),
    "single_token": _Family(
        "one token of a vocabulary of two: every dimension at its smallest",
        _ordinary,
        max_shape=(1, 1),
        vocabularies=(2,),
    ),
}


def _regions(*, with_tokens: bool) -> dict[str, Region]:
    return {
        name: region(family.meaning, family.build(with_tokens=with_tokens), cost=family.cost)
        for name, family in _FAMILIES.items()
    }


TOKEN_LOGPROBS = _regions(with_tokens=True)
ENTROPY = _regions(with_tokens=False)
