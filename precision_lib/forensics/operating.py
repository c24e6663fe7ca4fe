"""The operating point of a user, and the laws that carry a damage from where it was measured to it.

The hazard. A damage belongs to one KL and one length. A recipe that is healthy over 256 tokens can
be impaired over 2,048. So each hypothesis names its law, and a carried figure says on what it
rests: measured there, between two measurements, or beyond all of them.

Laws, with the metric's interval carried along:

- **per token, against the KL** (:func:`along_kl`): noise over signal between two measured points of
  the curve is interpolated in logarithms. Beyond the curve it goes with KL^(-1/2), because rounding
  noise does not know how far the policy moved.
- **summed over the response** (:func:`along_length`): up to the measured length, what was measured
  at that position, with the relative interval of the last one. Beyond it the sum goes on with the
  exponent that it was measured to grow with, and at least with the square root of the length. The
  square root alone would be wrong: the error of a token grows where an engine's cache inherits
  earlier errors. The sums of eight sequences can be small by chance, so the interval also covers
  the random walk of the token errors, which thousands of tokens fix. Where the sum was 0 at first,
  how it goes on is not known, and nothing bounds it.
- **not at all** (:func:`unchanged`): the damage depends on neither.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from precision_lib.forensics.statistics import Metric
from precision_lib.metrics.drift import GROWTH_LAWS

#: What a carried damage rests on.
MEASURED, INTERPOLATED, EXTRAPOLATED = "measured", "interpolated", "extrapolated"
#: Exponent of a sum of errors that know nothing of each other.
SQUARE_ROOT = GROWTH_LAWS["square_root"]


@dataclass(frozen=True)
class OperatingPoint:
    """What a user trains with.

    Attributes:
        algorithm: its name, for messages.
        length: response tokens.
        kl: true KL of policy and reference, nats per token.
        critic: a value head is trained.
        reference: a KL to a reference model is in the loss or the reward.
        normalised: rewards become advantages within a ``group`` or over the ``batch``.
    """

    algorithm: str
    length: int
    kl: float
    critic: bool
    reference: bool
    normalised: str

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length = {self.length}: a response has at least 1 token")
        if not 0 < self.kl < math.inf:
            raise ValueError(f"kl = {self.kl}: give a KL above 0, in nats per token, such as 1e-4")


class MeasuredCell(Protocol):
    """A cell of a record: its metrics, and the evidence of its hypothesis."""

    @property
    def metrics(self) -> Mapping[str, Metric]: ...
    @property
    def evidence(self) -> Any: ...


@dataclass(frozen=True)
class Carried:
    """A damage at the operating point.

    Attributes:
        damage: with its interval.
        basis: ``measured``, ``interpolated`` or ``extrapolated``.
        measured_at: where the nearest measurement was taken, in words; "" where that is no matter.
        factor: the damage over that of the cell; noise floors are carried by the same factor.
    """

    damage: Metric
    basis: str = MEASURED
    measured_at: str = ""
    factor: float = 1.0


def unchanged(cell: MeasuredCell, metric: str, point: OperatingPoint) -> Carried:
    """The damage as measured: it depends on neither length nor KL."""
    return Carried(cell.metrics[metric])


def by_normalisation(cell: MeasuredCell, metric: str, point: OperatingPoint) -> Carried:
    """The damage as measured, of advantages normalised over the batch where the algorithm does."""
    return Carried(cell.metrics[metric if point.normalised == "group" else f"batch_{metric}"])


def along_kl(cell: MeasuredCell, metric: str, point: OperatingPoint) -> Carried:
    """Noise over signal at another true KL, from the cell's curve.

    Raises:
        ValueError: the cell states no KL that it was measured at.
    """
    curve = sorted(cell.evidence.curve, key=lambda p: p.true_kl)
    own_kl = cell.evidence.true_kl
    if not curve or own_kl is None:
        raise ValueError("it does not state the KL that it was measured at; measure again")
    for at in curve:
        if at.target_kl == point.kl:
            factor = math.sqrt(own_kl / at.true_kl)
            return Carried(at.metrics[metric], MEASURED, _kl_words(at.true_kl), factor)
    factor = math.sqrt(own_kl / point.kl)
    above = next((i for i, at in enumerate(curve) if at.true_kl >= point.kl), len(curve))
    if 0 < above < len(curve):
        left, right = curve[above - 1 : above + 1]
        part = math.log(point.kl / left.true_kl) / math.log(right.true_kl / left.true_kl)
        damage = _between(left.metrics[metric], right.metrics[metric], part)
        words = f"{_kl_words(left.true_kl)} and {right.true_kl:.1e}"
        return Carried(damage, INTERPOLATED, words, factor)
    end = curve[min(above, len(curve) - 1)]
    damage = scaled(end.metrics[metric], math.sqrt(end.true_kl / point.kl))
    return Carried(damage, EXTRAPOLATED, _kl_words(end.true_kl), factor)


def along_drift(cell: MeasuredCell, metric: str, point: OperatingPoint) -> Carried:
    """:func:`along_length` for the log-ratio of policy and reference."""
    sampled = cell.evidence.sampled
    positions = sampled.by_position if sampled is not None else ()
    growth = cell.metrics["accum_err_growth_exponent"]
    return along_length(cell.metrics[metric], positions, growth, point)


def along_mismatch(cell: MeasuredCell, metric: str, point: OperatingPoint) -> Carried:
    """:func:`along_length` for the log-ratio of trainer and engine."""
    evidence = cell.evidence
    return along_length(
        cell.metrics[metric], evidence.by_position, evidence.rms_growth_exponent, point
    )


def along_length(
    final: Metric, positions: Sequence[Any], growth: Metric | None, point: OperatingPoint
) -> Carried:
    """The RMS of a sum over the response at another length.

    Args:
        final: RMS over sequences of the sum over all tokens, one cluster a sequence.
        positions: ranges with ``last`` (from 0) and ``accumulated_rms``, in their order.
        growth: exponent of the RMS in the number of tokens; None where it is not known.

    Raises:
        ValueError: ``final`` does not say over how many sequences it was taken.
    """
    if not final.clusters:
        raise ValueError(
            f"it states a sum over {final.n} tokens without their number of sequences; measure "
            "again"
        )
    measured = round(final.n / final.clusters)
    words = f"{measured} response tokens"
    if point.length == measured or final.high <= 0:
        return Carried(final, MEASURED, words)
    if point.length > measured:
        known = growth if all(at.accumulated_rms > 0 for at in positions) else None
        longer = _longer(final, point.length / measured, known)
        damage, basis = _covering(longer, random_walk(positions, point.length)), EXTRAPOLATED
    else:
        value = _at_position(positions, final.value, measured, point.length)
        damage, basis = scaled(final, value / final.value if final.value > 0 else 1.0), INTERPOLATED
    return Carried(damage, basis, words, damage.value / final.value if final.value > 0 else 1.0)


def scaled(metric: Metric, factor: float) -> Metric:
    """The same figure and interval, ``factor`` times as large."""
    return replace(
        metric, value=metric.value * factor, low=metric.low * factor, high=metric.high * factor
    )


def _longer(final: Metric, ratio: float, growth: Metric | None) -> Metric:
    """``final`` at ``ratio`` times its length; without a known growth nothing bounds it above."""
    low = max(final.low, 0.0) * ratio**SQUARE_ROOT
    if growth is None:
        return replace(final, value=final.value * ratio**SQUARE_ROOT, low=low, high=math.inf)
    value, high = (ratio ** max(SQUARE_ROOT, b) for b in (growth.value, growth.high))
    return replace(final, value=final.value * value, low=low, high=final.high * high)


def random_walk(positions: Sequence[Any], length: int) -> float | None:
    """RMS of the sum of ``length`` independent errors as large as those of the measured tokens."""
    tokens = sum(at.last - at.first + 1 for at in positions)
    if not tokens:
        return None
    power = sum(at.token_rms**2 * (at.last - at.first + 1) for at in positions) / tokens
    return math.sqrt(power * length)


def _covering(metric: Metric, other: float | None) -> Metric:
    if other is None:
        return metric
    return replace(metric, low=min(metric.low, other), high=max(metric.high, other))


def _at_position(positions: Sequence[Any], final: float, measured: int, length: int) -> float:
    """RMS of the sum over the first ``length`` tokens, in logarithms between two positions.

    Before the first position, and where a sum is 0, with the square root of the length.
    """
    known = [(at.last + 1, at.accumulated_rms) for at in positions if at.last + 1 < measured]
    known.append((measured, final))
    after = next(i for i, (tokens, _) in enumerate(known) if tokens >= length)
    tokens, rms = known[after]
    if after == 0 or known[after - 1][1] <= 0 or rms <= 0:
        return float(rms * math.sqrt(length / tokens))
    before, earlier = known[after - 1]
    part = math.log(length / before) / math.log(tokens / before)
    return float(earlier * (rms / earlier) ** part)


def _between(left: Metric, right: Metric, part: float) -> Metric:
    def at(a: float, b: float) -> float:
        return a * math.exp(part * math.log(b / a)) if a > 0 and b > 0 else a + part * (b - a)

    return replace(
        left,
        value=at(left.value, right.value),
        low=at(left.low, right.low),
        high=at(left.high, right.high),
    )


def _kl_words(kl: float) -> str:
    return f"a true KL of {kl:.1e}"
