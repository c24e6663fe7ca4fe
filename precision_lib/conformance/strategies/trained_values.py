"""Numbers of the scenes of a trainer's size: see ``as_trained.py``. Shapes are [B, T] or [G, K]."""

from collections.abc import Callable

import numpy as np

from precision_lib.conformance.strategies.primitives import Vector

Shape = tuple[int, int]
Values = Callable[[np.random.Generator, Shape], tuple[Vector, ...]]
Rewards = Callable[[np.random.Generator, Shape], Vector]


def noise(mean: float, spread: float) -> Values:
    """One vector of normal numbers."""
    return lambda random, shape: (mean + spread * random.standard_normal(shape),)


def policies(distance: float, far: float = 0.0) -> Values:
    """Log-probs, old ones and advantages; a few log-ratios are +-``far``, clipped on the way up."""

    def values(random: np.random.Generator, shape: Shape) -> tuple[Vector, ...]:
        new = -np.abs(2 * random.standard_normal(shape)) - 0.05
        old = np.minimum(new + distance * random.standard_normal(shape), 0.0)
        advantages = random.standard_normal(shape)
        if far:
            new[:, 3], old[:, 3] = -0.25, -0.25 - far
            new[:, 5], old[:, 5] = -0.25 - far, -0.25
            advantages[:, 3] = np.abs(advantages[:, 3])
        return new, old, advantages

    return values


def harmful(random: np.random.Generator, shape: Shape) -> tuple[Vector, ...]:
    """Log-ratios of 2, 4 and 25 on tokens of negative advantage, which nothing clips."""
    new, old, advantages = policies(0.1)(random, shape)
    for column, log_ratio in ((2, 2.0), (4, 4.0), (6, 25.0)):
        new[:, column], old[:, column] = -0.25, -0.25 - log_ratio
        advantages[:, column] = -np.abs(advantages[:, column])
    return new, old, advantages


def critics(random: np.random.Generator, shape: Shape) -> tuple[Vector, ...]:
    """Values, old ones 0.3 away, and returns 1 away."""
    values = 1 + random.standard_normal(shape)
    return (
        values,
        values + 0.3 * random.standard_normal(shape),
        values + random.standard_normal(shape),
    )


def equal(random: np.random.Generator, shape: Shape) -> Vector:
    """Every group has one reward: 0.95, 0.1, 2/3 and so on."""
    values = np.resize([0.95, 0.1, 2 / 3, 1.1, -0.3], shape[0])
    return np.repeat(values[:, None], shape[1], 1)


def scores(offset: float, spread: float) -> Rewards:
    """Normal numbers around an offset."""
    return lambda random, shape: offset + spread * random.standard_normal(shape)


def graded(random: np.random.Generator, shape: Shape) -> Vector:
    """Multiples of 0.1: none of them is a binary number."""
    return random.integers(0, 11, shape) / 10
