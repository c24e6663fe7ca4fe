"""Are the two numbers of a slot about the same token? Asked before anything else.

The hazard. A shifted or permuted dump has huge differences in every statistic, so that any later
question about it gets a wrong answer. Each check here has a null distribution: of two numbers
about different tokens, either is as likely to be the nearer one.

The measure of agreement is log(|d| + tiny): its mean over a row is a distance on a scale where a
few large errors do not matter.
"""

from dataclasses import dataclass, replace

import numpy as np

from precision_lib.mismatch.noise import scale
from precision_lib.mismatch.schema import Array, Dump
from precision_lib.mismatch.significance import critical, z_of_mean

#: |d| below this is agreement to the last bit of FP32.
TINY = 1e-7
SHIFTS = (1, -1, 2, -2)
#: Two numbers about one token agree far better than this factor (in |d|) against a neighbour's.
FACTOR = 2.0
#: No logits of 16 or 32 bits that work give a sampled token a log-prob below this, negated.
SMALLEST = 1e4
#: A value 0.0 is missing where the other side is so many times the noise away.
FAR = 12.0
#: Slots of a row that are compared in the search for its partner, and rows that are searched for.
SEARCHED_SLOTS, SEARCHED_ROWS = 64, 256


@dataclass(frozen=True)
class Misalignment:
    """One thing that is wrong with the pairing of the two columns.

    Attributes:
        kind: ``missing values``, ``shift``, ``pairing``, ``unrelated``, ``first entry``, ``mask``.
        words: the evidence, one sentence.
        share: of tokens (missing values, first entry) or rows that it concerns.
        undo: the shift that undoes it, 0 for none.
    """

    kind: str
    words: str
    share: float
    undo: int = 0


def missing(dump: Dump) -> Array:
    """[M] bool: a value is NaN, or 0.0 (probability 1) far beyond the noise from the other side."""
    return _nan(dump) | _zero(dump.rollout, dump.trainer) | _zero(dump.trainer, dump.rollout)


def _nan(dump: Dump) -> Array:
    """[M] bool: no number, or one like -1e9 that stands for no value."""
    bad: Array = np.zeros(len(dump.row), bool)
    for values in (dump.rollout, dump.trainer):
        bad |= np.isnan(values) | (np.isfinite(values) & (values < -SMALLEST))
    return bad


def _zero(side: Array, other: Array) -> Array:
    """[M] bool: ``side`` is 0.0, though the other side gives the token less than 61 %.

    A probability that rounds to 1 is 0.0, too, and then the other side is near 0. Where most of a
    column is 0.0, the sampling was cut to one token (greedy, top-p), and nothing is missing.
    """
    zero = side == 0
    rest = ~zero & np.isfinite(side) & np.isfinite(other)
    if zero.mean() > 0.5 or not rest.any():
        return np.zeros(len(side), bool)
    size = np.abs(side - other)[rest] / scale(other[rest])
    noise = FAR * float(np.median(size))
    bad: Array = zero & (other < -0.5) & (other < -noise)
    return bad


def missing_values(dump: Dump) -> list[Misalignment]:
    """Values that are not there: NaN, or 0.0 that stands for no value."""
    bad = missing(dump)
    if not bad.any():
        return []
    nan = int(_nan(dump).sum())
    ours = np.isnan(dump.rollout) | (dump.rollout < -SMALLEST) | _zero(dump.rollout, dump.trainer)
    first = int(np.argmax(bad))
    behind = _suffix_rows(dump, bad)
    ending = f"; {behind} rows end in them, so they look cut short" if behind else ""
    words = (
        f"{int(bad.sum())} of {len(bad)} tokens have no value on the "
        f"{'rollout' if ours.any() else 'trainer'} side ({nan} NaN or below -10,000, "
        f"{int(bad.sum()) - nan} times "
        f"0.0 where the other side is far below), first in row {dump.row[first]}, slot "
        f"{dump.slot[first]}{ending}"
    )
    return [Misalignment("missing values", words, float(bad.mean()))]


def _suffix_rows(dump: Dump, bad: Array) -> int:
    """Rows whose missing values, two or more, all stand at the end."""
    count = np.bincount(dump.row, bad, dump.rows)
    last_good = np.full(dump.rows, -1)
    np.maximum.at(last_good, dump.row, np.where(bad, -1, np.arange(len(bad))))
    first_bad = np.full(dump.rows, len(bad))
    np.minimum.at(first_bad, dump.row, np.where(bad, np.arange(len(bad)), len(bad)))
    return int(((count >= 2) & (last_good < first_bad)).sum())


def distance(d: Array) -> Array:
    """log(|d| + tiny) of each token."""
    logs: Array = np.log(np.abs(d) + TINY)
    return logs


def shifts(dump: Dump) -> list[Misalignment]:
    """Rows in which the trainer's value is that of a neighbouring token.

    Null: z of the mean gain in distance per row; corrected for rows times shifts.
    """
    if len(dump.row) == 0:
        return []
    own = distance(dump.trainer - dump.rollout)
    bound = critical(dump.rows * len(SHIFTS))
    concerned = []
    for shift in SHIFTS:
        first, second = _neighbours(dump, shift)
        other = distance(dump.trainer[first] - dump.rollout[second])
        gain = own[first] - other
        mean, z, count = _per_row(gain, dump.row[first], dump.rows)
        concerned.append((mean > np.log(FACTOR)) & (z > bound) & (count >= 8))
    counts = [int(rows.sum()) for rows in concerned]
    best = int(np.argmax(counts))
    if counts[best] == 0:
        return []
    shift = SHIFTS[best]
    many = "one token" if abs(shift) == 1 else "two tokens"
    first, second = _neighbours(dump, shift)
    chosen = concerned[best][dump.row[first]]
    rest = dump.trainer[first][chosen] - dump.rollout[second][chosen]
    before = (dump.trainer - dump.rollout)[concerned[best][dump.row]]
    words = (
        f"the trainer's value belongs to the token {many} {'later' if shift > 0 else 'earlier'} in "
        f"{counts[best]} of {dump.rows} rows: shifted back, the RMS of d falls from "
        f"{_rms(before):.3g} to {_rms(rest):.3g} nats"
    )
    return [Misalignment("shift", words, counts[best] / dump.rows, shift)]


def _neighbours(dump: Dump, shift: int) -> tuple[Array, Array]:
    """Indices (i, i + shift) of tokens of the same row."""
    index = np.arange(max(len(dump.row) - abs(shift), 0))
    first, second = (index, index + shift) if shift > 0 else (index - shift, index)
    same = dump.row[first] == dump.row[second]
    return first[same], second[same]


def unshifted(dump: Dump, shift: int) -> Dump:
    """The dump with the trainer's values moved back by ``shift`` tokens."""
    first, second = _neighbours(dump, shift)
    trainer = np.full(len(dump.trainer), np.nan)
    trainer[second] = dump.trainer[first]
    moved = replace(dump, trainer=trainer, entropy=None, trainer_again=None)
    return moved.only(~np.isnan(trainer))


def _per_row(values: Array, row: Array, rows: int) -> tuple[Array, Array, Array]:
    """Mean, z and count of ``values`` per row."""
    count = np.bincount(row, minlength=rows)
    total, squares = np.bincount(row, values, rows), np.bincount(row, values**2, rows)
    n = np.maximum(count, 2)
    mean = total / n
    spread = np.sqrt(np.maximum(squares / n - mean**2, 1e-12) / n)
    return mean, mean / spread, count


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2))) if len(x) else 0.0


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

    A row is *unpaired* where its own partner is no nearer than the next rows' are. For each the
    partner is searched among all rows.
    """
    if dump.rows < 3:
        return []
    rollout = padded(dump, dump.rollout, SEARCHED_SLOTS)
    trainer = padded(dump, dump.trainer, SEARCHED_SLOTS)
    own, stranger = _row_distance(rollout, trainer), _stranger(rollout, trainer)
    lonely = np.flatnonzero((own > stranger) & ((~np.isnan(rollout)).sum(1) >= 8))
    rest = np.setdiff1d(np.arange(dump.rows), lonely)
    if len(lonely) < 2 or (len(rest) and len(lonely) / dump.rows < 1e-3):
        return []
    searched = lonely[:SEARCHED_ROWS]
    partners = np.array([_partner(rollout, trainer[i], i) for i in searched])
    matched = int((partners >= 0).sum())
    if matched * 2 >= len(searched):
        i, j = next((i, j) for i, j in zip(searched, partners, strict=True) if j >= 0)
        words = (
            f"{len(lonely)} of {dump.rows} rows are paired wrongly: the trainer's row {i} holds "
            f"the values of the rollout's row {j} (a partner was found for {matched} of "
            f"{len(searched)} rows)"
        )
        return [Misalignment("pairing", words, len(lonely) / dump.rows)]
    if len(lonely) * 2 < dump.rows:
        return []
    words = (
        f"{len(lonely)} of {dump.rows} rows agree no better with their own partner than with a "
        "stranger's, and no partner and no shift was found: the two sides are about other tokens"
    )
    return [Misalignment("unrelated", words, len(lonely) / dump.rows)]


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
    return best if best != number and gaps[best] < gaps[number] - np.log(FACTOR) else -1


def first_entry(dump: Dump) -> list[Misalignment]:
    """The engine's value is that of its likeliest token, not of the sampled one.

    Then the two agree where the likeliest was sampled. Elsewhere the rollout's value is the larger
    one, by any amount, and both together are the probabilities of two tokens: at most 1. Another
    model or context differs both ways instead, in its moderate differences at least.
    """
    d = dump.trainer - dump.rollout
    if len(d) == 0:
        return []
    size = np.abs(d) / scale(dump.trainer)
    bulk = float(np.quantile(size, 0.2)) / 0.25  # 0.25: the same quantile of |normal|
    beyond, far = size > 6 * bulk, (size > 20 * bulk) & (np.abs(d) > 0.2)
    count = int(far.sum())
    if count < 20 or count < 0.01 * len(d):
        return []
    both = np.exp(dump.rollout[far]) + np.exp(dump.trainer[far])
    one_way = min(float((d[beyond] < 0).mean()), float((both <= 1 + 1e-2).mean()))
    if one_way < 0.95 or -float(np.quantile(d[far], 0.1)) < 3:
        return []
    words = (
        f"for {count} of {len(d)} tokens the rollout's value is that of a likelier token: it is "
        f"above the trainer's by {-np.median(d[far]):.2g} nats (median), and hardly ever below"
    )
    return [Misalignment("first entry", words, count / len(d))]


def mask_edges(dump: Dump) -> list[Misalignment]:
    """The first or last token of a run of real tokens is about another token.

    Null: z over runs of the distance of the edge token less that of its neighbour inside.
    """
    if len(dump.row) < 4:
        return []
    breaks = (np.diff(dump.row) != 0) | (np.diff(dump.slot) != 1)
    starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    ends = np.concatenate([starts[1:], [len(dump.row)]]) - 1
    starts, ends = starts[ends - starts >= 3], ends[ends - starts >= 3]
    if len(starts) < 8:
        return []
    gap = distance(dump.trainer - dump.rollout)
    found = []
    for name, edge, step in (("first", starts, 1), ("last", ends, -1)):
        next_to_it = (gap[edge + step] + gap[edge + 2 * step]) / 2
        jump = gap[edge] - next_to_it
        unlikely = np.minimum(dump.rollout[edge], dump.trainer[edge]) < -0.5
        z = z_of_mean(jump)
        size = float(np.median(np.abs((dump.trainer - dump.rollout)[edge])))
        near = float(np.median(np.abs((dump.trainer - dump.rollout)[edge + step])))
        if z > critical(2) and size > 30 * near and size > 0.5 and unlikely.mean() > 0.5:
            words = (
                f"the {name} token of {len(edge)} runs of real tokens differs by {size:.2g} nats "
                f"(median), its neighbour by {near:.2g}: the mask is one token too wide there"
            )
            found.append(Misalignment("mask", words, len(edge) / len(dump.row)))
    return found


def misalignments(dump: Dump) -> tuple[list[Misalignment], Dump]:
    """What is wrong, the most basic first, and the dump without the tokens that lack a value."""
    finite = np.isfinite(dump.rollout) & np.isfinite(dump.trainer) & ~_nan(dump)
    whole = dump if finite.all() else dump.only(finite)
    problems = shifts(whole) or pairing(whole)
    if problems:
        return problems, whole
    problems = missing_values(dump)
    clean = whole.only(~missing(whole)) if problems else whole
    return problems + (first_entry(clean) or mask_edges(clean)), clean
