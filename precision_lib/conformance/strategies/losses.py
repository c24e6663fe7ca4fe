"""Inputs of policy_loss and value_loss.

The hazard. The clipped surrogate is a minimum of two branches, and autograd visits both: a ratio
that overflows in the branch not taken gives 0 times inf, a finite loss with a NaN gradient. At the
clip the branch taken depends on the last bit. Identical policies must give a ratio of exactly 1.

n real tokens; d = logprobs - old_logprobs, the log of the ratio.
"""

from collections.abc import Callable

import numpy as np
import torch

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.kl import between, typical_logprobs
from precision_lib.conformance.strategies.primitives import (
    Build,
    Draws,
    MaskKind,
    Vector,
    region,
)
from precision_lib.conformance.strategies.statistics import large_mean
from precision_lib.formats import FORMATS

POLICY_CLIPS = (0.2, 0.1, 0.3, 3e-4)
VALUE_CLIPS = (0.2, 0.1, 0.5, 10.0)
#: exp(d) is finite in FP32 below this.
LOG_LARGEST = float(np.log(FORMATS["fp32"].largest))

Triple = tuple[Vector, Vector, Vector]
Make = Callable[[Draws, int, float], Triple]  # (draws, n, clip_range) -> three vectors [n]


def _advantages(draws: Draws, n: int) -> Vector:
    scale = 2.0 ** draws.integer("log2_advantages", -3, 3)
    return draws.planted(scale * draws.units("advantages", n))


def _magnitudes(draws: Draws, n: int) -> Vector:
    """[n] positive values: advantages without their signs, and 1 instead of 0."""
    x = np.abs(draws.rounded(_advantages(draws, n)))
    return np.where(x == 0, 1.0, x)


def _ordinary(draws: Draws, n: int, _: float) -> Triple:
    scale = 2.0 ** draws.integer("log2_log_ratio", -7, 0)
    return *between(draws, scale * draws.units("log_ratios", n)), _advantages(draws, n)


def _identical(draws: Draws, n: int, _: float) -> Triple:
    logprobs = typical_logprobs(draws, n)
    return logprobs, logprobs.copy(), _advantages(draws, n)


def _far_distances(draws: Draws, n: int, least: int) -> Vector:
    """[n] in [0, 700], one of them ``least`` or more."""
    return draws.integer("farthest", least, 700) * np.abs(draws.bounded("log_ratios", n))


def _far_positive(draws: Draws, n: int, _: float) -> Triple:
    logprobs, old = between(draws, _far_distances(draws, n, 100))
    zero = draws.indices("zero_advantages", n, 2).astype(np.bool_)
    return logprobs, old, np.where(zero, 0.0, _magnitudes(draws, n))


def _far_negative(draws: Draws, n: int, _: float) -> Triple:
    return *between(draws, -_far_distances(draws, n, 100)), _advantages(draws, n)


def _far_harmful(draws: Draws, n: int, _: float) -> Triple:
    return *between(draws, _far_distances(draws, n, 10)), -_magnitudes(draws, n)


def _tiny_advantages(draws: Draws, n: int, _: float) -> Triple:
    """The ratio overflows FP32; ratio times advantage, and the sum of 24 of them, does not."""
    fmt = draws.fmt
    lowest = fmt.emin - fmt.significand_bits + 3
    exponent = draws.integer("log2_advantages", lowest, -100 if fmt.emin < -100 else fmt.emin - 2)
    farthest = LOG_LARGEST - exponent * float(np.log(2)) - 4  # exp(4) = 55
    share = draws.integer("percent_of_the_way", 20, 100) / 100
    d = LOG_LARGEST + share * (farthest - LOG_LARGEST) * np.abs(draws.bounded("log_ratios", n))
    old = draws.rounded(-d)
    advantages = draws.rounded(2.0**exponent * draws.bounded("advantages", n))
    return np.zeros(n), old, -np.abs(advantages)


def _zero_advantages(draws: Draws, n: int, _: float) -> Triple:
    sign = draws.sign("direction")
    logprobs, old = between(draws, sign * _far_distances(draws, n, 100))
    nonzero = draws.indices("kept_advantages", n, 2).astype(np.bool_)
    advantages = np.where(nonzero, np.abs(_advantages(draws, n)), 0.0)
    advantages[np.argmax(np.abs(logprobs - old))] = 0.0
    return logprobs, old, advantages


def _at_the_clip(draws: Draws, n: int, clip: float) -> Triple:
    upper = draws.indices("upper_edge", n, 2) == 0
    edge = draws.rounded(-np.abs(np.log1p(np.where(upper, clip, -clip))))
    lower = edge - draws.ulps(edge) * np.rint(draws.units("ulps", n)).clip(-3, 3)
    zeros = np.zeros(n)
    return np.where(upper, zeros, lower), np.where(upper, lower, zeros), _advantages(draws, n)


def _near_overflow_policy(draws: Draws, n: int, _: float) -> Triple:
    logprobs, old = between(draws, draws.bounded("log_ratios", n) / 16)
    exponent = draws.integer("log2_advantages", draws.fmt.emax - 8, draws.fmt.emax - 1)
    return logprobs, old, 2.0**exponent * draws.bounded("advantages", n)


def _low_probability(draws: Draws, n: int, _: float) -> Triple:
    depth = draws.integer("depth", 30, 1000)
    old = draws.rounded(-depth * (1 + np.abs(draws.bounded("old_logprobs", n)) / 8))
    moved = old + draws.ulps(old) * np.rint(2 * draws.units("ulps", n))
    return moved, old, _advantages(draws, n)


def _ordinary_values(draws: Draws, n: int, _: float) -> Triple:
    scale = 2.0 ** draws.integer("log2_scale", -3, 3)
    values = draws.planted(scale * draws.units("values", n))
    moved = scale * draws.integer("move_in_eighths", 0, 8) / 8 * draws.units("moves", n)
    return values, values - moved, values + scale * draws.units("errors", n)


def _identical_values(draws: Draws, n: int, clip: float) -> Triple:
    values = _ordinary_values(draws, n, clip)[0]
    return values, values.copy(), values.copy()


def _large_values(draws: Draws, n: int, _: float) -> Triple:
    values = large_mean(draws, n)
    step = draws.ulps(values)
    old = values + step * np.rint(draws.units("moves_in_ulps", n))
    return values, old, values + step * np.rint(4 * draws.units("errors_in_ulps", n))


def _clipped(draws: Draws, n: int, clip: float) -> Triple:
    """Moves of 1.25 to 5.25 clip ranges, the first two in opposite directions."""
    old = draws.rounded(clip * draws.units("old_values", n).clip(-4, 4))
    sizes = clip * (1.25 + 4 * np.abs(draws.bounded("moves", n)))
    down = draws.indices("downwards", n, 2)
    down[:2] = 0, 1
    values = old + np.where(down == 1, -sizes, sizes)
    return values, old, old + 8 * clip * draws.units("errors", n)


def _at_the_value_clip(draws: Draws, n: int, clip: float) -> Triple:
    old = draws.rounded(draws.integer("quarters", 0, 8) / 4 * draws.units("old_values", n))
    down = draws.indices("downwards", n, 2)
    edge = draws.rounded(old + np.where(down == 1, -clip, clip))
    values = edge + draws.ulps(edge) * np.rint(draws.units("ulps", n)).clip(-3, 3)
    return values, old, old + 2 * clip * draws.units("errors", n)


def _scaled_values(draws: Draws, n: int, exponent: int) -> Triple:
    scale = 2.0**exponent
    values = scale * draws.bounded("values", n)
    values[0] = np.copysign(scale, values[0])
    returns = -values / 2
    return values, values + scale / 4 * draws.bounded("moves", n), returns


def _near_overflow_values(draws: Draws, n: int, _: float) -> Triple:
    emax = draws.fmt.emax
    return _scaled_values(draws, n, draws.integer("exponent", emax // 2 + 2, emax - 1))


def _large_errors(draws: Draws, n: int, _: float) -> Triple:
    return _scaled_values(draws, n, draws.integer("exponent", 50, 60))


def _subnormal_values(draws: Draws, n: int, _: float) -> Triple:
    fmt = draws.fmt
    lowest = fmt.emin - fmt.significand_bits + 3
    exponent = draws.integer("exponent", lowest, -100 if fmt.emin < -100 else fmt.emin)
    return _scaled_values(draws, n, exponent)


def _build(
    make: Make,
    names: tuple[str, str, str],
    clips: tuple[float, ...],
    kind: MaskKind,
    at_least: int,
) -> Build:
    """Inputs of a loss; a ``padded`` mask hides NaN and infinities in all three tensors."""

    def inputs(draws: Draws) -> Arguments:
        clip = draws.choice("clip_range", clips)
        mask = draws.mask(kind, at_least)
        vectors = draws.rounded(np.stack(make(draws, int(mask.sum()), clip)))
        made: Arguments = {
            name: draws.scattered(x, mask, nonfinite=kind == "padded")
            for name, x in zip(names, vectors, strict=True)
        }
        return made | {"mask": torch.from_numpy(mask), "clip_range": clip}

    return inputs


def _policy(make: Make, kind: MaskKind = "mostly_full") -> Build:
    return _build(make, ("logprobs", "old_logprobs", "advantages"), POLICY_CLIPS, kind, 1)


def _value(make: Make, kind: MaskKind = "mostly_full", at_least: int = 1) -> Build:
    return _build(make, ("values", "old_values", "returns"), VALUE_CLIPS, kind, at_least)


_LONG = "more tokens than bf16 counts, and long sums"
_RAGGED = "right-padded rows of any length, empty ones among them"
_HIDDEN = "NaN and infinities in the masked slots of all three tensors: none may reach a gradient"

POLICY_LOSS = {
    "ordinary": region("log-ratios of size 0.01 to 1", _policy(_ordinary)),
    "identical": region(
        "the old policy is the policy: every ratio is exactly 1", _policy(_identical)
    ),
    "ragged": region(_RAGGED, _policy(_ordinary, "ragged")),
    "masked_nonfinite": region(_HIDDEN, _policy(_ordinary, "padded")),
    "far_positive": region(
        "log-ratios up to 700 with advantages of 0 and above: the clip must save loss and gradient",
        _policy(_far_positive),
    ),
    "far_negative": region(
        "log-ratios down to -700: the ratio underflows to 0", _policy(_far_negative)
    ),
    "far_harmful": region(
        "log-ratios of 10 to 700 with advantages below 0: nothing clips, inf is legal where exact "
        "arithmetic exceeds FP32",
        _policy(_far_harmful),
    ),
    "tiny_advantages": region(
        "ratios beyond FP32 times advantages so small that the product fits",
        _policy(_tiny_advantages),
    ),
    "zero_advantages": region(
        "advantages of 0 where the ratio overflows or underflows: 0 times inf is NaN",
        _policy(_zero_advantages),
    ),
    "at_the_clip": region(
        "ratios within 3 units in the last place of the log-prob from 1 - c and 1 + c",
        _policy(_at_the_clip),
    ),
    "near_overflow": region(
        "advantages near the largest number and ratios near 1: the sum overflows, the mean fits",
        _policy(_near_overflow_policy),
    ),
    "single_token": region("one real token overall", _policy(_ordinary, "single")),
    "long": region(_LONG, _policy(_ordinary, "long"), cost=0.2),
    "low_probability": region(
        "log-probs of -30 to -1,000, a few units in the last place apart: a ratio of "
        "probabilities is 0 / 0",
        _policy(_low_probability),
    ),
}

VALUE_LOSS = {
    "ordinary": region("values, moves and errors of size 1/8 to 8", _value(_ordinary_values)),
    "identical": region(
        "values, old values and returns agree: the loss is exactly 0", _value(_identical_values)
    ),
    "ragged": region(_RAGGED, _value(_ordinary_values, "ragged")),
    "masked_nonfinite": region(_HIDDEN, _value(_ordinary_values, "padded")),
    "large_values": region(
        "values of 100 to 10,000 with errors of a few units in the last place",
        _value(_large_values, at_least=3),
    ),
    "clipped": region(
        "moves beyond the clip range in both directions: the larger of two errors counts",
        _value(_clipped, at_least=2),
    ),
    "at_the_clip": region(
        "moves within 3 units in the last place of the clip range, in both directions",
        _value(_at_the_value_clip),
    ),
    "near_overflow": region(
        "squared errors beyond the format: inf is legal where exact arithmetic exceeds FP32",
        _value(_near_overflow_values),
    ),
    "large_errors": region(
        "errors of 2^50 to 2^61, whose squares and their sum still fit into FP32",
        _value(_large_errors),
        formats=("bf16", "fp32"),
    ),
    "subnormal": region(
        "errors whose squares underflow: 0 is right, NaN is not", _value(_subnormal_values)
    ),
    "single_token": region("one real token overall", _value(_ordinary_values, "single")),
    "long": region(_LONG, _value(_ordinary_values, "long"), cost=0.2),
}
