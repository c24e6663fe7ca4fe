"""Values and masks for masked_mean, whiten and group_advantages.

The hazard. A mean and a standard deviation look harmless and fail in every direction: the sum
overflows or its count saturates (256 in bf16, 2,048 in fp16), E[x^2] - E[x]^2 cancels on a large
mean, the squares overflow or underflow where the quotient is of size 1, an epsilon in the
denominator shows when the spread is small, and a constant turns rounding noise into advantages of
size 1.

A *population* is the n real tokens of a batch, or the K samples of a group, on the grid of the
format. B sequences, T tokens, G groups, K samples.
"""

from collections.abc import Callable

import numpy as np
import torch

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.primitives import (
    Build,
    Draws,
    MaskKind,
    Vector,
    region,
)

LONG_LENGTHS = (256, 257, 300, 1000, 2049, 5000)
#: The count saturates on 1; the others have no short binary expansion.
LONG_CONSTANTS = (1.0, 0.1, 0.7, 1 / 3)
MAX_GROUPS = 3
MAX_SAMPLES = 8

Population = Callable[[Draws, int], Vector]  # (draws, n) -> [n]


def _ordinary(draws: Draws, n: int) -> Vector:
    scale = 2.0 ** draws.integer("log2_scale", -3, 3)
    return draws.rounded(draws.planted(scale * draws.units("values", n)))


def large_mean(draws: Draws, n: int) -> Vector:
    """Offset of 100 to 10,000, 12 to 1,000 times the spread; three distinct values if n allows."""
    offset = float(draws.rounded(np.array([draws.integer("offset", 100, 10_000)], np.float64))[0])
    ratio = 10.0 ** (draws.integer("tenths_of_log10_ratio", 11, 30) / 10)
    spread = max(offset / ratio, float(draws.ulps(offset)))
    deviations = draws.bounded("deviations", n)
    if np.ptp(deviations) < 1:  # all on one side: they would shift the mean and not spread
        deviations[0] *= -1
    x = draws.rounded(offset + spread * deviations)
    if np.unique(x).size < 3:
        x[:3] = draws.rounded(offset + spread * np.array([0.0, 1.0, -1.0]))[:n]
    return draws.sign("sign") * x


def _constant_value(draws: Draws) -> float:
    """Of the form (10 m + 1) / 10: no short binary expansion, unless the format is too coarse."""
    tenths = 10 * draws.integer("whole", 0, 10_000) + draws.choice("tenths", (1, 3, 7, 9))
    return draws.sign("sign") * float(draws.rounded(np.array([tenths / 10]))[0])


def _constant(draws: Draws, n: int) -> Vector:
    return np.full(n, _constant_value(draws))


def _nearly_constant(draws: Draws, n: int) -> Vector:
    x = _constant(draws, n)
    position = draws.integer("position", 0, n - 1)
    x[position] += np.copysign(draws.ulps(x[position]), x[position])
    return x


def _ties(draws: Draws, n: int) -> Vector:
    step = draws.choice("step", (1.0, 0.25, 0.1))
    x = step * np.rint(draws.units("levels", n).clip(-1, 1))
    x[1] = x[0]
    return draws.rounded(x)


def _heavy_tails(draws: Draws, n: int) -> Vector:
    x = draws.bounded("values", n)
    outlier = draws.sign("sign") * draws.integer("outlier", 1000, 10_000)
    x[draws.integer("position", 0, n - 1)] = outlier
    return draws.rounded(x)


def _squares_overflow(draws: Draws, n: int) -> Vector:
    """The largest magnitude has a square beyond the format; 1e30 to 1e38 in bf16 and fp32."""
    lowest = 100 if draws.fmt.emax > 100 else draws.fmt.emax // 2 + 2
    exponent = draws.integer("exponent", lowest, draws.fmt.emax)
    return draws.rounded(2.0**exponent * draws.bounded("values", n))


def _sum_overflows(draws: Draws, n: int) -> Vector:
    """Between half the largest number and the largest, all of one sign."""
    x = draws.fmt.largest * (1 - np.abs(draws.bounded("deviations", n)) / 4)
    return draws.sign("sign") * draws.rounded(x)


def _squares_underflow(draws: Draws, n: int) -> Vector:
    """The largest magnitude has a square below the format; 1e-30 to 1e-40 in bf16 and fp32."""
    fmt = draws.fmt
    lowest = max(fmt.emin - fmt.significand_bits + 3, fmt.emin - 7)
    highest = -100 if fmt.emin < -100 else fmt.emin
    exponent = draws.integer("exponent", lowest, highest)
    return _at_least_two_values(draws, 2.0**exponent * draws.bounded("values", n))


def _small_spread(draws: Draws, n: int) -> Vector:
    scale = 2.0 ** -draws.integer("halvings", 6, 20)
    return _at_least_two_values(draws, scale * draws.bounded("values", n))


def _at_least_two_values(draws: Draws, x: Vector) -> Vector:
    """On the grid; where rounding or the draw left one value, the first changes sign."""
    x = draws.rounded(x)
    if x.size > 1 and np.unique(x).size < 2:
        x[0] = -x[0]
    return x


def _cancellation(draws: Draws, n: int) -> Vector:
    """Pairs of x and -x, and in the last one or two slots a small remainder."""
    pairs = (n - 1) // 2
    scale = 2.0 ** draws.integer("log2_scale", 4, 10)
    large = scale * (1 + np.abs(draws.bounded("large", pairs)))
    small = 2.0 ** -draws.integer("halvings", 4, 10) * draws.bounded("small", n - 2 * pairs)
    order = np.argsort(draws.normal(n), kind="stable")
    return draws.rounded(np.concatenate([large, -large, small])[order])


def _binary(draws: Draws, n: int) -> Vector:
    return draws.indices("correct", n, 2).astype(np.float64)


def _one_above(draws: Draws, n: int) -> Vector:
    """Equal powers of two and one of them larger by one part in 128, the bf16 step."""
    x = np.full(n, 2.0 ** draws.integer("log2_scale", -4, 8))
    x[n - 1 - draws.integer("from_the_end", 0, n - 1)] *= 1.0078125
    return draws.sign("sign") * x


def _masked(population: Population, kind: MaskKind = "mostly_full", at_least: int = 1) -> Build:
    """Inputs x and mask; a ``padded`` mask hides NaN and infinities, the others finite values."""

    def inputs(draws: Draws) -> Arguments:
        mask = draws.mask(kind, at_least)
        x = draws.rounded(population(draws, int(mask.sum())))
        padded = draws.scattered(x, mask, nonfinite=kind == "padded")
        return {"x": padded, "mask": torch.from_numpy(mask)}

    return inputs


def _one_outlier(draws: Draws, n: int) -> Vector:
    x = draws.units("values", n)
    x[draws.integer("position", 0, n - 1)] += draws.integer("outlier", 10, 60)
    return x


def _one_success(draws: Draws) -> Arguments:
    samples = draws.choice("K", (16, 64, 300))
    rewards = np.zeros((draws.integer("G", 1, MAX_GROUPS), samples))
    rewards[:, draws.integer("position", 0, samples - 1)] = 1.0
    return {"rewards": draws.tensor(rewards + draws.choice("offset", (0.0, 0.25)))}


def _long(draws: Draws) -> Arguments:
    n = draws.choice("n", LONG_LENGTHS)
    mask = np.arange(n)[None, :] < n - draws.integer("missing", 0, n // 4)
    real = int(mask.sum())
    noise = draws.choice("noise", (0.0, 1.0))
    x = draws.choice("constant", LONG_CONSTANTS) + noise * draws.units("values", real)
    return {"x": draws.scattered(draws.rounded(x), mask), "mask": torch.from_numpy(mask)}


def _grouped(population: Population, fewest: int = 1, most: int = MAX_SAMPLES) -> Build:
    """Input rewards [G, K], each group drawn on its own."""

    def inputs(draws: Draws) -> Arguments:
        groups = draws.integer("G", 1, MAX_GROUPS)
        samples = draws.integer("K", fewest, most)
        rewards = np.stack([population(draws, samples) for _ in range(groups)])
        return {"rewards": draws.tensor(rewards)}

    return inputs


#: One FP32 ulp off a constant is not in it: FP32 arithmetic promises nothing there.
_NARROW = ("bf16", "fp16")
_MEANINGS = {
    "ordinary": "values of spread 1/8 to 8, the case that every core gets right",
    "large_mean": "a mean 12 to 1,000 times the spread: E[x^2] - E[x]^2 cancels",
    "constant": "all values equal, no power of two: rounding noise over rounding noise is not 0",
    "nearly_constant": "all values equal but one, which is one unit in the last place off",
    "ties": "three levels at most, two values equal at least",
    "heavy_tails": "one value is 1,000 to 10,000 times the rest",
    "squares_overflow": "values whose squares overflow the format, while the result is of size 1",
    "squares_underflow": "values whose squares underflow the format, while the result is of size 1",
    "long": "more tokens than bf16 counts, one of them far from the rest: a count saturates, a "
    "clip of the result shows",
    "small_spread": "a spread of 2^-6 to 2^-20 around 0: an epsilon added to the std shows",
    "ragged": "right-padded rows of any length, empty ones among them",
    "masked_nonfinite": "NaN and infinities in the masked slots, which multiplying by 0 keeps",
    "single_token": "one real token overall: the sample std divides by n - 1 = 0",
}

MASKED_MEAN = {
    "ordinary": region(_MEANINGS["ordinary"], _masked(_ordinary)),
    "ragged": region(_MEANINGS["ragged"], _masked(_ordinary, "ragged")),
    "masked_nonfinite": region(_MEANINGS["masked_nonfinite"], _masked(_ordinary, "padded")),
    "large_mean": region(
        "a mean of 100 to 10,000 and a small spread: a low-precision sum loses the spread",
        _masked(large_mean, at_least=3),
    ),
    "long": region(
        "up to 5,000 equal or similar values: counts saturate at 256 in bf16, 2,048 in fp16",
        _long,
        cost=0.3,
    ),
    "cancellation": region(
        "pairs of x and -x around a small remainder, which is the mean",
        _masked(_cancellation, at_least=3),
    ),
    "near_overflow": region(
        "the sum overflows the format, the mean does not", _masked(_sum_overflows, at_least=3)
    ),
    "heavy_tails": region(_MEANINGS["heavy_tails"], _masked(_heavy_tails, at_least=2)),
    "single_token": region(
        "one real token overall: the mean is that value", _masked(_ordinary, "single")
    ),
}

WHITEN = {
    "ordinary": region(_MEANINGS["ordinary"], _masked(_ordinary)),
    "ragged": region(_MEANINGS["ragged"], _masked(_ordinary, "ragged")),
    "masked_nonfinite": region(_MEANINGS["masked_nonfinite"], _masked(_ordinary, "padded")),
    "large_mean": region(_MEANINGS["large_mean"], _masked(large_mean, at_least=3)),
    "constant": region(_MEANINGS["constant"], _masked(_constant, at_least=2)),
    "nearly_constant": region(
        _MEANINGS["nearly_constant"], _masked(_nearly_constant, at_least=2), formats=_NARROW
    ),
    "single_token": region(_MEANINGS["single_token"], _masked(_ordinary, "single")),
    "long": region(_MEANINGS["long"], _masked(_one_outlier, "long"), cost=0.2),
    "ties": region(_MEANINGS["ties"], _masked(_ties, at_least=3)),
    "heavy_tails": region(_MEANINGS["heavy_tails"], _masked(_heavy_tails, at_least=2)),
    "near_overflow": region(_MEANINGS["squares_overflow"], _masked(_squares_overflow, at_least=2)),
    "subnormal": region(_MEANINGS["squares_underflow"], _masked(_squares_underflow, at_least=2)),
    "small_spread": region(_MEANINGS["small_spread"], _masked(_small_spread, at_least=2)),
}

GROUP_ADVANTAGES = {
    "ordinary": region(_MEANINGS["ordinary"], _grouped(_ordinary, 2)),
    "large_mean": region(_MEANINGS["large_mean"], _grouped(large_mean, 3)),
    "constant": region(_MEANINGS["constant"], _grouped(_constant, 2)),
    "nearly_constant": region(
        _MEANINGS["nearly_constant"], _grouped(_nearly_constant, 2), formats=_NARROW
    ),
    "binary": region(
        "rewards of 0 and 1, with groups all right or all wrong", _grouped(_binary, 2)
    ),
    "one_success": region(
        "one success among up to 300 samples: an advantage of up to 17 that a clip would cut",
        _one_success,
        cost=0.4,
    ),
    "ties": region(_MEANINGS["ties"], _grouped(_ties, 3)),
    "heavy_tails": region(_MEANINGS["heavy_tails"], _grouped(_heavy_tails, 2)),
    "near_overflow": region(_MEANINGS["squares_overflow"], _grouped(_squares_overflow, 2)),
    "subnormal": region(_MEANINGS["squares_underflow"], _grouped(_squares_underflow, 2)),
    "small_spread": region(_MEANINGS["small_spread"], _grouped(_small_spread, 2)),
    "one_sample": region(
        "a group of one: the sample std divides by K - 1 = 0", _grouped(_ordinary, 1, 1)
    ),
    "openrlhf_case": region(
        "[1, 1, 1, 1.0078125] and its relatives, which statistics in bf16 turn into [0, 0, 0, 2]",
        _grouped(_one_above, 3),
    ),
}
