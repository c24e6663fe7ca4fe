"""Does a row of the trainer hold the values of another sequence?"""

import numpy as np

from precision_lib.mismatch.misalignment import Misalignment, distance
from precision_lib.mismatch.schema import Array, Dump

#: Slots of a row that are compared in the search for its partner, and rows that are searched for.
SEARCHED_SLOTS, SEARCHED_ROWS = 64, 256
#: A row is distant, and a partner is one, by this factor in the typical abs(d).
DISTANT = 5.0


def padded(dump: Dump, values: Array, width: int) -> Array:
    """[N, width]: the first values of each row, NaN where a row is shorter."""
    starts = np.searchsorted(dump.row, np.arange(dump.rows))
    place = np.arange(len(dump.row)) - starts[dump.row]
    table = np.full((dump.rows, width), np.nan)
    inside = place < width
    table[dump.row[inside], place[inside]] = values[inside]
    return table


def pairing(dump: Dump) -> list[Misalignment]:
    """Rows whose trainer values fit another row's tokens, or no row's.

    A row is *lonely* where its own partner is no nearer than the next rows' are. For each, and for
    each that is far more distant than the median row, the partner is searched among all rows.
    """
    if dump.rows < 3:
        return []
    rollout = padded(dump, dump.rollout, SEARCHED_SLOTS)
    trainer = padded(dump, dump.trainer, SEARCHED_SLOTS)
    long = (~np.isnan(rollout)).sum(1) >= 8
    own = _row_distance(rollout, trainer)
    lonely = long & (own > _stranger(rollout, trainer))
    distant = np.flatnonzero(lonely | (long & (own > np.median(own) + np.log(DISTANT))))
    searched = distant[:SEARCHED_ROWS]
    partners = {int(i): _partner(rollout, trainer[i], int(i)) for i in searched}
    matched = {i: j for i, j in partners.items() if j >= 0}
    if matched and len(matched) * 2 >= lonely[searched].sum():
        i, j = next(iter(matched.items()))
        share = len(matched) / len(searched) * len(distant) / dump.rows
        words = (
            f"about {round(share * dump.rows)} of {dump.rows} rows are paired wrongly: the "
            f"trainer's row {i} holds the values of the rollout's row {j} (a partner was found for "
            f"{len(matched)} of {len(searched)} distant rows)"
        )
        return [Misalignment("pairing", words, share)]
    if lonely.sum() * 2 < dump.rows:
        return []
    words = (
        f"{lonely.sum()} of {dump.rows} rows agree no better with their own partner than with a "
        "stranger's, and no partner and no shift was found: the two sides are about other tokens"
    )
    return [Misalignment("unrelated", words, float(lonely.mean()))]


def _row_distance(one: Array, other: Array) -> Array:
    """[N] mean of log(|difference| + tiny) over the slots that both rows have."""
    gap = distance(one - other)
    there = ~np.isnan(gap)
    means: Array = np.where(there, gap, 0).sum(1) / np.maximum(there.sum(1), 1)
    return means


def _stranger(rollout: Array, trainer: Array) -> Array:
    """[N] the distance to the values of the next three rows of the trainer, less two errors."""
    several = [_row_distance(rollout, np.roll(trainer, -k, 0)) for k in (1, 2, 3)]
    slots = np.maximum((~np.isnan(rollout)).sum(1), 1)
    # log|d| of unrelated numbers has a standard deviation of about 1.1 (that of log|normal|).
    nearest: Array = np.mean(several, axis=0) - 2 * 1.1 / np.sqrt(slots)
    return nearest


def _partner(rollout: Array, row: Array, number: int) -> int:
    """The rollout row that ``row`` of the trainer fits far better than its own; -1 for none."""
    gaps = _row_distance(rollout, np.broadcast_to(row, rollout.shape))
    best = int(np.argmin(gaps))
    return best if best != number and gaps[best] < gaps[number] - np.log(DISTANT) else -1
