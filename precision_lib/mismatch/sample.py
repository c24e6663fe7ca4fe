"""What the fingerprints are computed from, and what one of them says."""

from dataclasses import dataclass

import numpy as np

from precision_lib.mismatch.noise import scale
from precision_lib.mismatch.schema import Array, Dump
from precision_lib.mismatch.significance import clusters

#: Errors beyond so many robust standard deviations are cut where a mean must not follow them.
CLIP = 4.0
#: median |normal|.
MEDIAN = 0.6745


@dataclass(frozen=True)
class Fingerprint:
    """One statistic against what rounding may make of it.

    Attributes:
        name: in the record. value: of the statistic.
        margin: the largest magnitude (or value, one-sided) that rounding of this size explains.
        error: standard error; 0 where the test has another distribution.
        limit: the value beyond which the test rejects.
        rejects: rounding noise does not explain the value.
        words: what the statistic is, for a reader.
    """

    name: str
    value: float
    margin: float
    error: float
    limit: float
    rejects: bool
    words: str


@dataclass(frozen=True)
class Sample:
    """What the fingerprints are computed from; arrays are [M] over the tokens.

    Attributes:
        d: trainer - rollout, nats. r: rollout log-prob. u: d / (1 - p + floor).
        clipped: u within 4 robust standard deviations. robust: that standard deviation, of u.
        row, place, length: sequence, place in the run of real tokens, and the run's length.
        cluster: unit of the standard errors. differs: bool, d is not exactly 0.
    """

    d: Array
    r: Array
    u: Array
    clipped: Array
    robust: float
    row: Array
    place: Array
    length: Array
    cluster: Array
    differs: Array

    @property
    def variance(self) -> float:
        return float(self.d.var())


def sample_of(dump: Dump) -> Sample:
    """The sample of an aligned dump."""
    d = dump.trainer - dump.rollout
    u = d / scale(dump.rollout)
    differs = d != 0
    robust = float(np.median(np.abs(u[differs]))) / MEDIAN if differs.any() else 0.0
    breaks = (np.diff(dump.row) != 0) | (np.diff(dump.slot) != 1)
    if dump.turn is not None:
        breaks |= np.diff(dump.turn) != 0
    starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    lengths = np.diff(np.concatenate([starts, [len(d)]]))
    place = np.arange(len(d)) - np.repeat(starts, lengths)
    bound = CLIP * robust
    return Sample(
        d, dump.rollout, u, np.clip(u, -bound, bound), robust, dump.row, place,
        np.repeat(lengths, lengths), clusters(dump.row), differs,
    )  # fmt: skip
