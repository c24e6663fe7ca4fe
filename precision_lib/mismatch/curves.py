"""Four curves of d that a person looks at: by probability, by place, its shape, by length."""

from dataclasses import dataclass

import numpy as np

from precision_lib.mismatch.noise import scale, sigma_of
from precision_lib.mismatch.sample import sample_of
from precision_lib.mismatch.schema import Array, Dump

PROBABILITIES = np.array([0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0000001])
#: Robust standard deviations up to which the shape is drawn, and bars within.
WIDEST, BARS = 6.0, 49


@dataclass(frozen=True)
class Curve:
    """Points, and what rounding would give at the same x; all in nats but x and shares.

    Attributes:
        x, y: measured. law: what the law of rounding noise gives at x.
    """

    x: Array
    y: Array
    law: Array


def by_probability(dump: Dump) -> Curve:
    """RMS of d against the token's probability; the law is sigma (1 - p)."""
    d, p = dump.trainer - dump.rollout, np.exp(np.minimum(dump.rollout, 0))
    weight = scale(dump.rollout) * sigma_of(d, dump.rollout)
    return _binned(p, d, weight, PROBABILITIES)


def by_place(dump: Dump) -> Curve:
    """RMS of d against the place in a run of real tokens; the law follows the probabilities."""
    s = sample_of(dump)
    weight = scale(dump.rollout) * sigma_of(s.d, s.r)
    longest = int(s.place.max()) + 1
    edges = np.unique(np.geomspace(1, longest + 1, 24).astype(int)) - 1
    return _binned(s.place.astype(float), s.d, weight, edges.astype(float))


def _binned(x: Array, d: Array, weight: Array, edges: Array) -> Curve:
    number = np.digitize(x, edges) - 1
    number = np.clip(number, 0, len(edges) - 2)
    count = np.bincount(number, minlength=len(edges) - 1)
    there = count > 0
    sums = [np.bincount(number, values, len(count))[there] for values in (x, d**2, weight**2)]
    middle, square, law = (total / count[there] for total in sums)
    return Curve(middle, np.sqrt(square), np.sqrt(law))


def shape(dump: Dump) -> Curve:
    """Density of d / (1 - p) in robust standard deviations; the law is a normal density."""
    s = sample_of(dump)
    values = s.u / s.robust if s.robust else s.u
    edges = np.linspace(-WIDEST, WIDEST, BARS + 1)
    count, _ = np.histogram(np.clip(values, -WIDEST, WIDEST), edges)
    middle = (edges[1:] + edges[:-1]) / 2
    width = edges[1] - edges[0]
    normal = np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi)
    return Curve(middle, count / len(values) / width, normal)


def by_length(dump: Dump) -> Curve:
    """RMS of the summed d against the number of tokens summed; the law is the root of it."""
    d = dump.trainer - dump.rollout
    starts = np.searchsorted(dump.row, np.arange(dump.rows))
    lengths = np.bincount(dump.row)
    total = np.concatenate([[0.0], np.cumsum(d)])
    counts = np.unique(np.geomspace(1, int(lengths.max()), 24).astype(int))
    # At least 8 sequences, or all there are: the RMS of fewer says nothing.
    needed = min(8, dump.rows)
    counts = counts[[(lengths >= n).sum() >= needed for n in counts]]
    rms = []
    for n in counts:
        begin = starts[lengths >= n]
        rms.append(np.sqrt(np.mean((total[begin + n] - total[begin]) ** 2)))
    one = float(np.sqrt(np.mean(d**2)))
    return Curve(counts.astype(float), np.array(rms), one * np.sqrt(counts))
