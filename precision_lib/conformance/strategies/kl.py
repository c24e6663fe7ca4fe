"""Log-probs of two policies for kl_penalty.

The hazard. Near the reference d = policy - ref is small and k3 = exp(-d) - 1 + d is smaller still,
about d^2 / 2: the textbook form loses it to cancellation long before d itself is lost. Far from
the reference exp(-d) overflows, and a clamp after the exp leaves a NaN gradient.

A log-prob of -inf is left out: its ratio with another -inf has no value.
B sequences, T tokens.
"""

from collections.abc import Callable

import numpy as np

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.primitives import Build, Draws, Vector, region

ESTIMATORS = ("k1", "k2", "k3")
#: Where k3 is what is hard, it is the estimator of three cases in four: Hypothesis repeats its
#: choices, so that a third would leave some runs of 25 cases with two.
MOSTLY_K3 = ("k3", "k1", "k3", "k2", "k3", "k3", "k3", "k3")
#: exp(88.72) is the largest FP32 number: just inside, just outside, and far outside.
FAR_LOG_RATIOS = (85.0, -85.0, 88.0, -88.0, 90.0, -90.0, 300.0, -300.0)

Pair = Callable[[Draws, int], tuple[Vector, Vector]]  # (draws, n) -> policy [n], ref [n]


def typical_logprobs(draws: Draws, n: int, name: str = "log2_logprobs") -> Vector:
    """[n] log-probs between -0.01 and -20, on the grid of the format, evenly spread in size."""
    exponents = np.clip(1.5 * draws.units(name, n), np.log2(0.01), np.log2(20.0))
    return draws.rounded(-(2.0**exponents))


def between(draws: Draws, d: Vector) -> tuple[Vector, Vector]:
    """(new, old) log-probs, both below 0, whose difference is ``d`` rounded."""
    upper = typical_logprobs(draws, d.size)
    lower = draws.rounded(upper - np.abs(d))
    return np.where(d > 0, upper, lower), np.where(d > 0, lower, upper)


def _shifted(draws: Draws, policy: Vector, log_ratio: Vector) -> tuple[Vector, Vector]:
    """ref = policy - log_ratio, never above 0, and off by one unit somewhere at least."""
    ref = draws.rounded(np.minimum(policy - log_ratio, 0.0))
    if np.array_equal(ref, policy):
        ref[0] = policy[0] - draws.ulps(policy[0])
    return policy, ref


def _near_identical(draws: Draws, n: int) -> tuple[Vector, Vector]:
    scale = 2.0 ** -draws.integer("halvings", 3, 20)
    return _shifted(draws, typical_logprobs(draws, n), scale * draws.units("log_ratios", n))


def _ordinary(draws: Draws, n: int) -> tuple[Vector, Vector]:
    scale = 2.0 ** draws.integer("log2_scale", -3, 1)
    return _shifted(draws, typical_logprobs(draws, n), scale * draws.units("log_ratios", n))


def _far(draws: Draws, n: int) -> tuple[Vector, Vector]:
    scale = float(draws.integer("scale", 10, 85))
    return between(draws, draws.planted(scale * draws.bounded("log_ratios", n), FAR_LOG_RATIOS, 1))


def _identical(draws: Draws, n: int) -> tuple[Vector, Vector]:
    policy = typical_logprobs(draws, n)
    return policy, policy.copy()


def _tiny_logprobs(draws: Draws, n: int) -> tuple[Vector, Vector]:
    fmt = draws.fmt
    lowest = fmt.emin - fmt.significand_bits + 2
    scale = 2.0 ** draws.integer("log2_scale", lowest, -11)
    policy = -scale * np.abs(draws.bounded("policy", n))
    return policy, -scale * np.abs(draws.bounded("ref", n))


def _low_probability(draws: Draws, n: int) -> tuple[Vector, Vector]:
    depth = draws.integer("depth", 30, 1000)
    policy = draws.rounded(-depth * (1 + np.abs(draws.bounded("policy", n)) / 8))
    steps = np.rint(2 * draws.units("ulps", n))
    return _shifted(draws, policy, steps * draws.ulps(policy))


def _build(pair: Pair, estimators: tuple[str, ...] = ESTIMATORS) -> Build:
    def inputs(draws: Draws) -> Arguments:
        estimator = draws.choice("estimator", estimators)
        shape = draws.shape()
        policy, ref = pair(draws, shape[0] * shape[1])
        return {
            "policy_logprobs": draws.tensor(policy).reshape(shape),
            "ref_logprobs": draws.tensor(ref).reshape(shape),
            "estimator": estimator,
        }

    return inputs


KL_PENALTY = {
    "near_identical": region(
        "log-ratios of size 2^-20 to 2^-3: k3 as exp(-d) - 1 + d loses all its digits",
        _build(_near_identical, MOSTLY_K3),
    ),
    "ordinary": region("log-ratios of size 0.1 to 3, as after some training", _build(_ordinary)),
    "far": region(
        "log-ratios of 10 to 85 of both signs, and one to beyond 88.7: exp(-d) reaches the end of "
        "FP32",
        _build(_far, MOSTLY_K3),
    ),
    "identical": region(
        "the reference is the policy: every estimator is exactly 0", _build(_identical)
    ),
    "tiny_logprobs": region(
        "log-probs from -5e-4 down to subnormal: k2 and k3 underflow, k1 must not",
        _build(_tiny_logprobs, MOSTLY_K3),
    ),
    "low_probability": region(
        "log-probs of -30 to -1,000, a few units in the last place apart: a pass through "
        "probabilities loses both",
        _build(_low_probability),
    ),
}
