"""Errors of log-probs summed along the sequence: how large they get, and by which law they grow.

The hazard. An error of 0.03 nats per token looks harmless, and whatever sums log-probs over a
sequence (a GSPO ratio, a DPO margin, a sequence-level importance weight, a KL per sequence) sees
the sum of 2,000 of them. How the sum grows decides: errors that change sign at random grow with
the square root of the length, errors of one sign with the length. Rounding has both parts. For
tokens drawn from mu and an executed model pi the expected sum is exactly -KL(mu || pi) per token,
with a standard deviation of sqrt(2 KL T): rounding is a random walk *with a drift*, downwards for
whichever of policy and reference is rounded alone, and no drift where both are.

Error of a token: e = d(configuration) - d(golden), d = log pi - log pi_ref; S_t is the sum of e up
to token t, T the length.

============================  ==================================================================
metric                        on N sequences of T tokens, policy at a known true KL
============================  ==================================================================
accum_err_final               RMS over sequences of S_T, nats: the damage, and what decides
accum_err_growth_exponent     b in RMS(S_t) ~ t^b: 0 flat, 0.5 square root, 1 linear
drift_nats_per_1000_tokens    1000 * sum of e / tokens, signed
log_ratio_rms_error           RMS of e, nats
sequence_ratio_ess            (mean w)^2 / mean w^2 of w = exp(S_T): share of the sequences that
                              importance weights are worth, by the error alone
log_ratio_nonfinite_frac      share of d that is inf or NaN; they enter nothing else, and a cell
                              that has any is impaired
============================  ==================================================================

N sequences, T tokens each, R resamples; sums are name to [N] per sequence.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_lib.metrics.measure import Array, Totals

#: Before this token the accumulated error is that of a few tokens, and its RMS mostly chance.
FIRST_POSITION = 16
#: What an exponent stands for.
GROWTH_LAWS = {"flat": 0.0, "square_root": 0.5, "linear": 1.0}
#: GSPO clips the length-normalised sequence ratio to [1 - 3e-4, 1 + 4e-4] (verl #2775, TRL #3834).
GSPO_BAND = (3e-4, 4e-4)
#: Weights are exp of at least this below the largest: its square is still far above underflow.
SMALLEST_LOG_WEIGHT = -300.0


def positions(length: int) -> list[int]:
    """Token counts at which S_t is taken: two per octave, the last one is ``length``."""
    steps = np.geomspace(min(FIRST_POSITION, length), length, _intervals(length) + 1)
    return [int(t) for t in np.unique(np.rint(steps))]


def _intervals(length: int) -> int:
    return max(1, round(2 * math.log2(max(length, 2) / min(FIRST_POSITION, length))))


def bins(length: int) -> list[tuple[int, int]]:
    """[first, last) tokens of geometric bins over the whole sequence: 0-16, 16-32, 32-64, ..."""
    edges = [0, FIRST_POSITION]
    while edges[-1] * 2 <= length:
        edges.append(edges[-1] * 2)
    edges = [e for e in edges if e < length]
    # A last bin of a few tokens would say nothing: it joins the one before.
    if len(edges) > 1 and length - edges[-1] < edges[-1] // 2:
        edges.pop()
    return list(zip(edges, [*edges[1:], length], strict=True))


def sequence_sums(error: Array) -> dict[str, Array]:
    """Everything that the metrics need, per sequence.

    Args:
        error: [N, T] e, nats; inf or NaN where the log-ratio is.

    Returns:
        Name to [N]; ``accumulated2@t`` is S_t squared, ``error2@first-last`` the sum of squares
        of a bin. Errors that are not finite count as 0 and are counted.

    Raises:
        ValueError: for an array that is not [N, T] with at least one token.
    """
    if error.ndim != 2 or error.size == 0:
        raise ValueError(f"expected errors [N, T] of at least one token, got shape {error.shape}")
    finite = np.isfinite(error)
    finite_error = np.where(finite, error, 0.0)
    accumulated = finite_error.cumsum(1)
    final = accumulated[:, -1]
    weight = relative_weights(final)
    count, length = error.shape
    sums = {
        "sequences": np.ones(count),
        "tokens": np.full(count, float(length)),
        "nonfinite": (~finite).sum(1).astype(np.float64),
        "error": final,
        "error2": (finite_error**2).sum(1),
        "final2": final**2,
        "weight": weight,
        "weight2": weight**2,
    }
    sums |= {f"accumulated2@{t}": accumulated[:, t - 1] ** 2 for t in positions(length)}
    return sums | {f"error2@{a}-{b}": (finite_error[:, a:b] ** 2).sum(1) for a, b in bins(length)}


def relative_weights(final: Array) -> Array:
    """[N] exp(S_T) over the largest of them; the effective sample size does not see the factor."""
    return np.asarray(np.exp(np.maximum(final - final.max(), SMALLEST_LOG_WEIGHT)))


def log_log_slope(x: list[float], y: list[Array]) -> Array:
    """Least-squares slope of log y over log x, where y > 0; 0 where fewer than two points are.

    ``y``: one number or [R] array per x. Nothing that grows has no exponent, which is called flat.
    """
    values = np.stack([np.asarray(v, dtype=np.float64) for v in y])
    used = values > 0
    log_y = np.log(np.where(used, values, 1.0))
    log_x = np.log(np.asarray(x)).reshape(-1, *[1] * (values.ndim - 1)) * np.ones_like(values)
    count = np.maximum(used.sum(0), 1)
    centred = np.where(used, log_x - np.where(used, log_x, 0).sum(0) / count, 0.0)
    spread = (centred**2).sum(0)
    slope = (centred * log_y).sum(0) / np.where(spread > 0, spread, 1.0)
    return np.asarray(np.where(spread > 0, slope, 0.0))


def growth_exponent(totals: Totals) -> Array:
    """b of RMS(S_t) ~ t^b over :func:`positions`, from totals of :func:`sequence_sums`."""
    names = [name for name in totals if name.startswith("accumulated2@")]
    return log_log_slope([float(n.split("@")[1]) for n in names], [totals[n] for n in names]) / 2


def critical_length(totals: Totals, limit: float) -> Array:
    """Tokens after which RMS(S_t) first passes ``limit``, log-log between :func:`positions`.

    The last position where it never does, the first where it does from there.
    """
    names = [name for name in totals if name.startswith("accumulated2@")]
    at = np.array([float(n.split("@")[1]) for n in names])
    rms = np.sqrt(np.stack([np.asarray(totals[n] / totals["sequences"]) for n in names]))
    above = rms > limit
    first = np.where(above.any(0), above.argmax(0), len(at) - 1)
    before = np.maximum(first - 1, 0)
    low, high = (np.take_along_axis(rms, i[None], 0)[0] for i in (before, first))
    inside = (low > 0) & (high > limit) & (low <= limit)
    rise = np.where(inside, np.log(np.where(inside, high / np.where(inside, low, 1), np.e)), 1.0)
    part = np.where(inside, np.log(limit / np.where(inside, low, limit)) / rise, 1.0)
    length: Array = at[before] * (at[first] / at[before]) ** part
    return length


def expected_critical_length(kl: float, limit: float) -> float:
    """T at which sqrt((KL T)^2 + 2 KL T) = ``limit``: drift and random walk of a rounded model.

    With x = KL T: x = sqrt(1 + limit^2) - 1.
    """
    return (math.sqrt(1 + limit**2) - 1) / kl


def token_growth_exponent(totals: Totals) -> Array:
    """The same for the RMS of e itself, over :func:`bins`: 0 where position does not matter."""
    names = [name for name in totals if name.startswith("error2@")]
    edges = [tuple(map(int, n.split("@")[1].split("-"))) for n in names]
    mean_squares = [totals[n] / (b - a) for n, (a, b) in zip(names, edges, strict=True)]
    return log_log_slope([(a + b) / 2 for a, b in edges], mean_squares) / 2


def laws_within(low: float, high: float) -> list[str]:
    """Names of the growth laws whose exponent lies in the interval."""
    return [name for name, exponent in GROWTH_LAWS.items() if low <= exponent <= high]


@dataclass(frozen=True)
class PositionRange:
    """Errors of tokens ``first`` to ``last``, nats: RMS, mean, and RMS of the sum up to there."""

    first: int
    last: int
    token_rms: float
    token_mean: float
    accumulated_rms: float


@dataclass(frozen=True)
class StoredSum:
    """Error of a sequence log-prob, nats RMS: summed exactly, and stored in the format."""

    summed: float
    stored: float


def by_position(error: Array) -> tuple[PositionRange, ...]:
    """Per bin: RMS and mean of e, nats, and RMS of the accumulated S at its end."""
    finite_error = np.where(np.isfinite(error), error, 0.0)
    accumulated = finite_error.cumsum(1)
    return tuple(
        PositionRange(
            first=a,
            last=b - 1,
            token_rms=_rms(finite_error[:, a:b]),
            token_mean=float(finite_error[:, a:b].mean()),
            accumulated_rms=_rms(accumulated[:, b - 1]),
        )
        for a, b in bins(error.shape[1])
    )


def gaussian_ess(error: Array) -> float:
    """exp(-var S_T): effective sample size of log-normal weights; var over the N sequences."""
    finite_error = np.where(np.isfinite(error), error, 0.0)
    return float(np.exp(-finite_error.sum(1).var(ddof=1))) if len(finite_error) > 1 else 1.0


def outside_gspo_band(error: Array) -> float:
    """Share of sequences that :data:`GSPO_BAND` clips because of the error alone.

    The length-normalised ratio of a policy that has not moved is exp(S_T / T) instead of 1.
    """
    low, high = GSPO_BAND
    ratio = np.exp(np.where(np.isfinite(error), error, 0.0).mean(1))
    return float(((ratio < 1 - low) | (ratio > 1 + high)).mean())


def stored_sum_error(logprobs: Array, golden: Array, fmt: str) -> StoredSum:
    """Error of a sequence log-prob: summed exactly, and then stored in ``fmt`` as well.

    Args:
        logprobs, golden: [N, T] log-probs of one model, executed and golden.
    """
    wanted, got = (np.where(np.isfinite(x), x, 0.0).sum(1) for x in (golden, logprobs))
    stored = np.asarray([round_scalar(s, fmt) for s in got])
    return StoredSum(summed=_rms(got - wanted), stored=_rms(stored - wanted))


def round_scalar(value: float, fmt: str) -> float:
    """``value`` rounded to a format, nearest even."""
    import torch

    from precision_lib.formats import FORMATS, round_to

    return float(round_to(torch.tensor([value], dtype=torch.float64), FORMATS[fmt]))


def _rms(x: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
