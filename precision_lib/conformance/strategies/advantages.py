"""Rewards, values and masks for gae.

The hazard. GAE is a recurrence over the whole response: an error made at one step is carried to
all earlier ones, a bf16 accumulator stalls, a NaN reward behind the last real token travels to the
front, and the bootstrap value after the last real token must be 0 and not the padding's. With
values of 10,000 and deltas of 1 the subtraction decides what is left.

B sequences, T tokens, n real tokens in row-major order.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.primitives import (
    Build,
    Draws,
    MaskKind,
    Vector,
    region,
)
from precision_lib.conformance.strategies.statistics import large_mean
from precision_lib.formats import FORMATS

GAMMAS = (1.0, 0.999, 0.99, 0.9, 0.5, 0.0)
LAMBDAS = (1.0, 0.95, 0.5, 0.0)
LONG_LENGTHS = (256, 1000, 2048, 8192)

Mask = NDArray[np.bool_]
Discounts = tuple[float, float]  # gamma, lam
Make = Callable[[Draws, Mask, Discounts], tuple[Vector, Vector]]  # -> rewards [n], values [n]


def _ordinary(draws: Draws, mask: Mask, _: Discounts) -> tuple[Vector, Vector]:
    n = int(mask.sum())
    rewards = 2.0 ** draws.integer("log2_rewards", -3, 3) * draws.units("rewards", n)
    values = 2.0 ** draws.integer("log2_values", -3, 3) * draws.units("values", n)
    return draws.planted(rewards), values


def _sparse_terminal(draws: Draws, mask: Mask, discounts: Discounts) -> tuple[Vector, Vector]:
    rewards, values = _ordinary(draws, mask, discounts)
    last = np.cumsum(mask.sum(axis=1))[mask.any(axis=1)] - 1
    sparse = np.zeros_like(rewards)
    sparse[last] = np.where(rewards[last] == 0, 1.0, rewards[last])
    return sparse, values


def _large_values(draws: Draws, mask: Mask, _: Discounts) -> tuple[Vector, Vector]:
    n = int(mask.sum())
    return draws.units("rewards", n) / 16, large_mean(draws, n)


def _near_overflow(draws: Draws, mask: Mask, discounts: Discounts) -> tuple[Vector, Vector]:
    """Up to the largest number, halved until the exact results fit into FP32.

    Drawn freely, what is left seldom overflows on the way. So in half of the cases rewards of 0.6
    and -0.3 of the largest number alternate under values of 0.6: reward plus next value overflows,
    and the value subtracted next, or the advantage added, brings it back.
    """
    largest = draws.fmt.largest
    rewards = draws.bounded("rewards", int(mask.sum()))
    values = draws.bounded("values", int(mask.sum()))
    if draws.choice("overflow_on_the_way", (True, False)):
        is_even = np.nonzero(mask)[1] % 2 == 0
        sign = draws.sign("sign")
        rewards = sign * (np.where(is_even, 0.6, -0.3) + rewards / 32)
        values = sign * (0.6 + values / 32)
    rewards, values = draws.rounded(largest * np.stack([rewards, values]))
    while _largest_result(rewards, values, mask, discounts) > FORMATS["fp32"].largest / 1.01:
        rewards, values = rewards / 2, values / 2
    return rewards, values


def _largest_result(rewards: Vector, values: Vector, mask: Mask, discounts: Discounts) -> float:
    """The largest magnitude among advantages and returns, in float64."""
    gamma, lam = discounts
    r, v = np.zeros(mask.shape), np.zeros(mask.shape)
    r[mask], v[mask] = rewards, values
    advantage = next_value = np.zeros(len(mask))
    largest = 0.0
    for t in reversed(range(mask.shape[1])):
        advantage = r[:, t] + gamma * next_value - v[:, t] + gamma * lam * advantage
        next_value = v[:, t]
        largest = max(largest, *np.abs(advantage), *np.abs(advantage + next_value))
    return largest


def _build(
    make: Make,
    kind: MaskKind = "mostly_full",
    gammas: tuple[float, ...] = GAMMAS,
    lambdas: tuple[float, ...] = LAMBDAS,
    at_least: int = 1,
) -> Build:
    """Inputs of gae; a ``padded`` mask hides NaN and infinities in rewards and in values."""

    def inputs(draws: Draws) -> Arguments:
        discounts = draws.choice("gamma", gammas), draws.choice("lam", lambdas)
        mask = draws.mask(kind, at_least)
        rewards, values = draws.rounded(np.stack(make(draws, mask, discounts)))
        hidden = kind == "padded"
        return {
            "rewards": draws.scattered(rewards, mask, nonfinite=hidden),
            "values": draws.scattered(values, mask, nonfinite=hidden),
            "mask": torch.from_numpy(mask),
            "gamma": discounts[0],
            "lam": discounts[1],
        }

    return inputs


def _long(draws: Draws) -> Arguments:
    n = draws.choice("T", LONG_LENGTHS)
    mask = np.arange(n)[None, :] < n - draws.integer("missing", 0, n // 4)
    real = int(mask.sum())
    values = draws.choice("value_scale", (0.0, 0.1, 1.0)) * draws.units("values", real)
    rewards, values = draws.rounded(np.stack([np.full(real, 0.01), values]))
    return {
        "rewards": draws.scattered(rewards, mask),
        "values": draws.scattered(values, mask),
        "mask": torch.from_numpy(mask),
        "gamma": 0.999,
        "lam": draws.choice("lam", (1.0, 0.95)),
    }


GAE = {
    "ordinary": region("rewards and values of size 1/8 to 8, all discounts", _build(_ordinary)),
    "ragged": region(
        "right-padded rows of any length, empty ones among them: the value after the last real "
        "token is 0",
        _build(_ordinary, "ragged"),
    ),
    "masked_nonfinite": region(
        "NaN and infinities behind the last real token, in rewards and values: the recurrence "
        "starts there",
        _build(_ordinary, "padded"),
    ),
    "long": region(
        "up to 8,192 tokens with a reward of 0.01 each: a low-precision accumulator stalls",
        _long,
        cost=0.1,
    ),
    "sparse_terminal": region(
        "a reward at the last real token only, which must reach the first undiminished",
        _build(_sparse_terminal),
    ),
    "large_values": region(
        "values of 100 to 10,000 that differ little: the temporal differences cancel",
        _build(_large_values, gammas=(1.0, 0.999), at_least=3),
    ),
    "near_overflow": region(
        "rewards and values near the largest number: the results fit, sums on the way may not",
        _build(_near_overflow),
    ),
    "single_token": region(
        "one real token overall: its advantage is reward minus value", _build(_ordinary, "single")
    ),
    "undiscounted": region(
        "gamma = lam = 1: the advantage is the reward to go minus the value",
        _build(_ordinary, gammas=(1.0,), lambdas=(1.0,)),
    ),
}
