"""What separates the causes: statistics of d, each with its null distribution under rounding.

The null. Rounding errors have the standard deviation sigma (1 - p), are independent between tokens,
and do not know the position. To first order every statistic here is 0 then. To second order some
are not: a statistic's *margin* is what rounding noise of this size may make of it, and a test asks
whether the statistic exceeds its margin by more than its standard error allows. So more tokens do
not turn a small imperfection of the null into an alarm.

Sources of the margins: second order is counted in v, the variance of d, with the factor 2.
Positions, sequences and tails: the extremes over all emulated engines (docs/mismatch.md).
"""

import math

import numpy as np

from precision_lib.mismatch.sample import Fingerprint, Sample, sample_of
from precision_lib.mismatch.schema import Array, Dump
from precision_lib.mismatch.significance import (
    LEVEL,
    chi_square_quantile,
    critical,
    mean_and_error,
)

SECOND_ORDER = 2.0
#: A log-softmax that adds V terms in FP32 may be off by sqrt(V) units of rounding, 2^-24, for all
#: tokens in one direction: small terms vanish in the sum. Of torch's on a CPU 7e-6 nats were seen
#: with V = 49,152. The largest vocabularies have 2^18 entries.
NORMALISER = 2.0**-24 * math.sqrt(2**18)
#: Rounding noise of the first eight tokens over the others': up to 1.2; correlation within a
#: sequence: up to 0.003; spread of sigma over sequences: up to 0.11; RMS over median: up to 1.9.
EARLY_MARGIN, SEQUENCE_MARGIN, SPREAD_MARGIN, TAIL_MARGIN = 1.4, 0.02, 0.2, 2.5
GROWTH_MARGIN = 1.25
#: A rounding scheme shrinks or stretches logits a little: with an FP8 KV cache 4 % of the variance
#: of d lie on a line in the log-prob, so that 8 % are allowed (0.28 squared). Its errors are a
#: little skewed: 4 % more of one sign, so that 10 % are allowed.
LINE_MARGIN, SKEW_MARGIN = 0.28, 0.1
EARLY_TOKENS = 8
#: Errors of a logit near 1 nat exchange likely and unlikely tokens, which 1 - p does not foresee:
#: simulated noise of sigma 0.4 has an RMS of 4 robust sizes, of sigma 1 one of 8.
TAIL_GROWTH = 8.0


def _tested(
    name: str, value: float, margin: float, error: float, degrees: int, words: str,
    *, one_sided: bool = False,
) -> Fingerprint:  # fmt: skip
    limit = margin + critical(1, degrees) * error
    magnitude = value if one_sided else abs(value)
    rejects = bool(math.isfinite(limit) and magnitude > limit)
    return Fingerprint(name, value, margin, error, limit, rejects, words)


def slope(s: Sample) -> Fingerprint:
    """Slope of d on the rollout's log-prob: a temperature of one side scales log-probs."""
    centred = s.r - s.r.mean()
    spread = float(np.mean(centred**2))
    words = "slope of d on the log-prob"
    if spread == 0:
        return Fingerprint("slope", 0.0, 0.0, 0.0, math.inf, False, words)
    value = float(np.mean(centred * s.d)) / spread
    rest = s.d - s.d.mean() - value * centred
    _, error, degrees = mean_and_error(centred * rest / spread, s.cluster)
    margin = LINE_MARGIN * math.sqrt(s.variance / spread)
    return _tested("slope", value, margin, error, degrees, words)


def slope_share(s: Sample, b: float) -> float:
    """Share of the variance of d that a straight line in the log-prob explains."""
    return b**2 * float(s.r.var()) / s.variance if s.variance > 0 else 0.0


def ratio_mean(s: Sample) -> Fingerprint:
    """E[r] - 1: 0 for any trainer, when the tokens come from the distribution that is reported.

    The mean of ratios is not estimable where a few tokens carry it; then nothing is tested.
    """
    ratio = np.exp(np.minimum(s.d, 50.0))
    value, error, degrees = mean_and_error(ratio - 1, s.cluster)
    centred = ratio - ratio.mean()
    spread = math.sqrt(float(np.mean(centred**2)))
    skew = float(np.mean(centred**3)) / spread**3 if spread > 0 else 0.0
    words = "mean of the ratio, less 1"
    margin = SECOND_ORDER * s.variance + NORMALISER
    # Edgeworth: the tail of a mean is off by skew / (6 sqrt(n)) times z^2; and lognormal ratios
    # whose spread exceeds 1 hide their large values from a sample.
    if spread > 1 or abs(skew) > math.sqrt(len(s.d)) / 5:
        return Fingerprint("ratio_mean", value, margin, error, math.inf, False, words)
    return _tested("ratio_mean", value, margin, error, degrees, words)


def one_sided(s: Sample) -> Fingerprint:
    """Share of d above 0, less one half: renormalised probabilities move one way only."""
    d = s.d[s.differs]
    words = "share of d above 0, less one half"
    # What the normalisers' rounding moves all of d by has one sign, and is no fault.
    sign = np.sign(d - np.clip(np.median(d), -NORMALISER, NORMALISER)) if len(d) else d
    if len(sign) < 2:
        return Fingerprint("one_sided", 0.0, 0.0, 0.0, math.inf, False, words)
    value, error, degrees = mean_and_error(sign / 2, _renumbered(s.cluster[s.differs]))
    margin = SKEW_MARGIN + SECOND_ORDER / 4 * math.sqrt(s.variance + float(s.d.mean()) ** 2)
    return _tested("one_sided", value, min(margin, 0.45), error, degrees, words)


def surprisal(s: Sample, dump: Dump) -> Fingerprint | None:
    """Surprisal less entropy, nats: 0 when tokens come from the distribution of the entropy."""
    if dump.entropy is None:
        return None
    value, error, degrees = mean_and_error(-dump.trainer - dump.entropy, s.cluster)
    margin = SECOND_ORDER * s.variance
    words = "surprisal less entropy of the trainer, nats"
    return _tested("surprisal", value, margin, error, degrees, words)


def pit(s: Sample, dump: Dump) -> Fingerprint | None:
    """Kolmogorov's distance between where the tokens lie in the trainer's distribution and uniform.

    Tokens that are drawn from it, one after the other, lie at independent uniform places.
    """
    if dump.pit is None:
        return None
    places, count = np.sort(dump.pit), len(dump.pit)
    steps = np.arange(count + 1) / count
    value = float(max((steps[1:] - places).max(), (places - steps[:-1]).max()))
    margin = SECOND_ORDER * s.variance
    limit = margin + math.sqrt(-math.log(LEVEL / 2) / 2 / count)
    words = "distance of the sampled tokens' places in the trainer's distribution from uniform"
    return Fingerprint("pit", value, margin, 0.0, limit, value > limit, words)


def early(s: Sample) -> Fingerprint | None:
    """Size of d in the first 8 tokens of a response over the others': another context fades."""
    words = "log of the size of d in the first 8 tokens over that of the others"
    return _fades(s, "early", s.place < EARLY_TOKENS, words)


def fading(s: Sample) -> Fingerprint | None:
    """The same for the first quarter of a response, where the context fades slowly."""
    words = "log of the size of d in the first quarter over that of the rest"
    return _fades(s, "fading", s.place < s.length / 4, words)


def _fades(s: Sample, name: str, first: Array, words: str) -> Fingerprint | None:
    if min(first.sum(), (~first).sum()) < 32 or s.robust == 0:
        return None
    value, error, degrees = _log_ratio(np.abs(s.clipped), first, s.cluster)
    return _tested(name, value, math.log(EARLY_MARGIN), error, degrees, words, one_sided=True)


def _log_ratio(x: Array, chosen: Array, cluster: Array) -> tuple[float, float, int]:
    """log of (mean of x where chosen / mean elsewhere), its standard error, degrees of freedom."""
    groups = int(cluster.max()) + 1
    means, influence = [], np.zeros(groups)
    for part, sign in ((chosen, 1.0), (~chosen, -1.0)):
        mean = float(x[part].mean())
        means.append(mean)
        if mean > 0:
            sums = np.bincount(cluster[part], x[part] - mean, groups)
            influence += sign * sums / (mean * part.sum())
    if min(means) <= 0 or groups < 2:
        return 0.0, math.inf, 1
    error = math.sqrt(groups / (groups - 1) * float((influence**2).sum()))
    return math.log(means[0] / means[1]), error, groups - 1


def sequence_means(s: Sample) -> Fingerprint | None:
    """Correlation of d within a sequence: training moves whole sequences, rounding does not."""
    return _between(
        s, s.clipped, "sequence_means", SEQUENCE_MARGIN, "correlation of d in a sequence"
    )


def sequence_spread(s: Sample) -> Fingerprint | None:
    """Spread of the size of d over sequences, as a share of its mean."""
    size = np.abs(s.clipped)
    within = _within(size[s.differs], _renumbered(s.row[s.differs]))
    mean = float(size[s.differs].mean()) if s.differs.any() else 0.0
    margin = (SPREAD_MARGIN * mean) ** 2 / within if within > 0 else 0.0
    words = "variance of the size of d between sequences over that within"
    return _between(s, size, "sequence_spread", margin, words)


def _within(x: Array, row: Array) -> float:
    count = np.bincount(row)
    mean = np.bincount(row, x) / count
    rest = float(((x - mean[row]) ** 2).sum())
    return rest / max(len(x) - len(count), 1)


def _renumbered(row: Array) -> Array:
    return np.unique(row, return_inverse=True)[1]


def _between(s: Sample, x: Array, name: str, margin: float, words: str) -> Fingerprint | None:
    """Variance component of row means over the variance within; F of a one-way layout.

    Rows differ in length; n0 is the length that makes the expectation right (Searle).
    """
    x, row = x[s.differs], _renumbered(s.row[s.differs])
    count = np.bincount(row)
    groups = len(count)
    if groups < 8 or len(x) < 4 * groups:
        return None
    within = _within(x, row)
    if within <= 0:
        return None
    means = np.bincount(row, x) / count
    between = float((count * (means - x.mean()) ** 2).sum()) / (groups - 1)
    n0 = (len(x) - float((count**2).sum()) / len(x)) / (groups - 1)
    value = (between / within - 1) / n0
    largest = (1 + n0 * margin) * chi_square_quantile(groups - 1, critical()) / (groups - 1)
    limit = (largest - 1) / n0
    return Fingerprint(name, value, margin, 0.0, limit, value > limit, words)


def tail(s: Sample) -> Fingerprint | None:
    """RMS of d / (1 - p) over its robust size: rare large errors, as of another expert."""
    u = s.u[s.differs]
    if s.robust == 0 or len(u) < 64:
        return None
    cluster = _renumbered(s.cluster[s.differs])
    square, error, degrees = mean_and_error(u**2, cluster)
    value = math.log(math.sqrt(square) / s.robust)
    words = "log of the RMS of d / (1 - p) over its robust size"
    relative = error / (2 * square)
    margin = math.log(TAIL_MARGIN * (1 + TAIL_GROWTH * s.robust))
    return _tested("tail", value, margin, relative, degrees, words, one_sided=True)


def growth(s: Sample, dump: Dump) -> Fingerprint | None:
    """Size of d in the later half of the steps over the earlier: weights that stay behind."""
    if dump.step is None or len(np.unique(dump.step)) < 2 or s.robust == 0:
        return None
    late = dump.step[dump.row] > np.median(np.unique(dump.step))
    if not late.any() or late.all():
        return None
    value, error, degrees = _log_ratio(np.abs(s.clipped), late, s.cluster)
    words = "log of the size of d in the later half of the steps over the earlier"
    return _tested("growth", value, math.log(GROWTH_MARGIN), error, degrees, words, one_sided=True)


def fingerprints(dump: Dump) -> tuple[Sample, dict[str, Fingerprint]]:
    """The sample, and every fingerprint that the dump's columns allow, by name."""
    s = sample_of(dump)
    taken = (
        slope(s), ratio_mean(s), one_sided(s), surprisal(s, dump), pit(s, dump), early(s),
        fading(s), sequence_means(s), sequence_spread(s), tail(s), growth(s, dump),
    )  # fmt: skip
    return s, {f.name: f for f in taken if f is not None}
