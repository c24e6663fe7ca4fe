"""The damage of a whole PPO step in RL terms: what a record holds, and how cosines are computed.

The hazard. 1 - cos of two nearly equal vectors is lost when it is computed as 1 minus a quotient in
FP32. Here it comes from the difference of the two vectors, so that 1e-13 is seen.

n sequences, P' coordinates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from precision_lib.forensics.statistics import Metric, NothingComparedError
from precision_lib.forensics.t_quantile import student_quantile
from precision_lib.metrics.measure import Array


@dataclass(frozen=True)
class StepDamage:
    """What one configuration does to the step, each figure against FP32 on the same tokens.

    Figures of the step are None where it holds inf or NaN: a trainer skips it.

    Attributes:
        expected_cosine: from the errors of log-probs and advantages alone, :func:`expected_cosine`.
        gradient_cosine: of the policy gradient.
        gradient_norm_ratio: norm over that of FP32.
        exact_inputs_cosine: the same policy format with the advantages, log-softmax and ratios of
            FP32: what remains if the inputs of the loss are exact. None for FP32 itself.
        logprob_rms_error: of the policy, nats.
        advantage_rms_error: RMS error over RMS of the whitened advantages.
        advantage_sign_flip_frac: share of tokens that are pushed the wrong way.
        rank_inversion_frac: share of pairs of answers to a prompt in the wrong order; None where
            no two answers differ in their reward.
        clip_change_frac: share of tokens whose ratio changes sides of the clip range.
    """

    configuration: str
    expected_cosine: float | None
    gradient_cosine: Metric | None
    gradient_norm_ratio: Metric | None
    exact_inputs_cosine: Metric | None
    logprob_rms_error: Metric | None
    advantage_rms_error: Metric | None
    advantage_sign_flip_frac: Metric | None
    rank_inversion_frac: Metric | None
    clip_change_frac: Metric


@dataclass(frozen=True)
class PipelineDamage:
    """The damage of every configuration on one step.

    Attributes:
        true_kl: of the policy from the reference, nats per token.
        clip_kl: of the policy whose clip decisions are looked at; clipped_frac: FP32's own share.
        sequences, tokens: of the step. coordinates: of the gradient that were compared, of
            ``parameters``.
        kl_coefficient: weight of the penalty.
        steps: one for each configuration.
    """

    true_kl: float
    clip_kl: float
    clipped_frac: float
    sequences: int
    tokens: int
    coordinates: int
    parameters: int
    kl_coefficient: float
    steps: tuple[StepDamage, ...]

    def of(self, configuration: str) -> StepDamage | None:
        """The row of a configuration; None where it was not measured."""
        return next((s for s in self.steps if s.configuration == configuration), None)


def expected_cosine(logprob_error: float, advantage_error: float) -> float:
    """1 / sqrt(1 + noise power over signal power), for errors that are independent.

    A token's term of the gradient is its advantage times the gradient of its log-prob. The first
    is off by the relative ``advantage_error``. The second is a difference of probabilities, which
    are off by the relative ``logprob_error`` (nats).
    """
    return 1 / math.sqrt(1 + logprob_error**2 + advantage_error**2)


@dataclass(frozen=True)
class Products:
    """Inner products of the terms of two gradients, each [n, n]; the gradients are their sums.

    Attributes:
        truth: of the terms G_i of FP32. error: of the differences g_i - G_i. mixed: error by truth.
    """

    truth: Array
    error: Array
    mixed: Array

    def without(self, sequence: int) -> "Products":
        """Of all sequences but one."""
        rest = np.delete(np.arange(len(self.truth)), sequence)
        return Products(*(x[np.ix_(rest, rest)] for x in vars(self).values()))

    def lost(self) -> float:
        """1 - cosine, 0 to 2; 1 where the other gradient is 0."""
        truth, error, mixed = (float(x.sum()) for x in vars(self).values())
        other = truth + 2 * mixed + error
        if other <= 0:
            return 1.0
        cosine = (truth + mixed) / math.sqrt(truth * other)
        if cosine < 0.5:
            return 1 - cosine
        sine2 = max(0.0, (error - mixed**2 / truth) / other)
        return sine2 / (1 + math.sqrt(max(0.0, 1 - sine2)))

    def norm_ratio(self) -> float:
        """Norm of the other gradient over FP32's."""
        truth, error, mixed = (float(x.sum()) for x in vars(self).values())
        return math.sqrt(max(0.0, truth + 2 * mixed + error) / truth)


def products(other: Array, truth: Array) -> Products:
    """Of the terms of two gradients, [n, P'] each.

    Raises:
        NothingComparedError: fewer than two sequences whose term is not 0, or a gradient of 0.
    """
    carrying = int(np.any(truth, 1).sum())
    if carrying < 2 or not np.any(truth.sum(0)):
        raise NothingComparedError(
            f"{carrying} of {len(truth)} sequences give a gradient to compare: give two or more, "
            "whose rewards differ"
        )
    error = other - truth
    return Products(truth @ truth.T, error @ error.T, error @ truth.T)


def cosine_metric(given: Products, tokens: int) -> Metric:
    """Cosine with its interval over sequences, by the jackknife of log(1 - cosine)."""
    lost, low, high = _jackknife(given, Products.lost)
    most = 1 - min(high, 2.0)
    return Metric(1 - lost, most, 1 - low, tokens, "cosine", len(given.truth))


def norm_metric(given: Products, tokens: int) -> Metric:
    """Norm over FP32's with its interval, by the jackknife of its logarithm."""
    return Metric(*_jackknife(given, Products.norm_ratio), tokens, "ratio", len(given.truth))


def _jackknife(given: Products, figure: Callable[[Products], float]) -> tuple[float, float, float]:
    """(value, low, high) of a figure above 0, with Student's quantile; 0 has no width."""
    count, value = len(given.truth), figure(given)
    left_out = np.array([figure(given.without(i)) for i in range(count)])
    if value <= 0 or np.any(left_out <= 0):
        return value, min(value, float(left_out.min())), max(value, float(left_out.max()))
    logarithms = np.log(left_out)
    spread = np.square(logarithms - logarithms.mean()).sum() * (count - 1) / count
    width = math.exp(min(700.0, student_quantile(count - 1) * math.sqrt(spread)))
    return value, value / width, value * width
