"""Are the two numbers of a slot about the same token? Asked before anything else.

The hazard. A shifted or permuted dump has huge differences in every statistic, so that any later
question about it gets a wrong answer. Each check here has a null distribution: of two numbers
about different tokens, either is as likely to be the nearer one.
"""

from dataclasses import replace

import numpy as np

from precision_lib.mismatch.misalignment import FACTOR, Misalignment, distance
from precision_lib.mismatch.noise import scale
from precision_lib.mismatch.pairing import pairing
from precision_lib.mismatch.schema import Array, Dump
from precision_lib.mismatch.significance import critical, z_of_mean

SHIFTS = (1, -1, 2, -2)
#: No logits of 16 or 32 bits that work give a sampled token a log-prob below this, negated.
SMALLEST = 1e4
#: A value 0.0 is missing where the other side is so many times the noise away.
FAR = 12.0
#: Tokens of a row that are tested for a shift together; a share above which a shift is undone.
STRETCH, NEARLY_ALL = 32, 0.9


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


def shifts(dump: Dump) -> list[Misalignment]:
    """Stretches of rows in which the trainer's value is that of a neighbouring token.

    Null: z of the mean gain in distance per stretch; corrected for stretches times shifts.
    """
    if len(dump.row) == 0:
        return []
    own = distance(dump.trainer - dump.rollout)
    stretch = _stretches(dump)
    number = int(stretch[-1]) + 1
    bound = critical(number * len(SHIFTS))
    concerned = []
    for shift in SHIFTS:
        first, second = _neighbours(dump, shift)
        gain = own[first] - distance(dump.trainer[first] - dump.rollout[second])
        mean, z, count = _per_row(gain, stretch[first], number)
        concerned.append(((mean > np.log(FACTOR)) & (z > bound) & (count >= 8))[stretch])
    counts = [int(tokens.sum()) for tokens in concerned]
    best = int(np.argmax(counts))
    if counts[best] == 0:
        return []
    shift, tokens = SHIFTS[best], concerned[best]
    first, second = _neighbours(dump, shift)
    chosen = tokens[first]
    rest = dump.trainer[first][chosen] - dump.rollout[second][chosen]
    rows = len(np.unique(dump.row[tokens]))
    words = (
        f"the trainer's value belongs to the token {'one' if abs(shift) == 1 else 'two'} "
        f"place{'s' if abs(shift) > 1 else ''} {'later' if shift > 0 else 'earlier'} for "
        f"{counts[best]} of {len(dump.row)} tokens, in {rows} of {dump.rows} rows: shifted back, "
        f"the RMS of d falls from {_rms((dump.trainer - dump.rollout)[tokens]):.3g} to "
        f"{_rms(rest):.3g} nats"
    )
    share = counts[best] / len(dump.row)
    return [Misalignment("shift", words, share, shift if share > NEARLY_ALL else 0)]


def _stretches(dump: Dump) -> Array:
    """[M] int64: the row, or its next 32 tokens, that the token belongs to."""
    starts = np.searchsorted(dump.row, np.arange(dump.rows))
    part = (np.arange(len(dump.row)) - starts[dump.row]) // STRETCH
    numbers: Array = np.cumsum(
        np.concatenate([[False], (np.diff(dump.row) != 0) | (np.diff(part) != 0)])
    )
    return numbers


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
    inside = float(np.median(np.abs(dump.trainer - dump.rollout)))
    edges = []
    for name, edge, step in (("first", starts, 1), ("last", ends, -1)):
        next_to_it = (gap[edge + step] + gap[edge + 2 * step]) / 2
        jump = gap[edge] - next_to_it
        unlikely = np.minimum(dump.rollout[edge], dump.trainer[edge]) < -0.5
        z = z_of_mean(jump)
        size = float(np.median(np.abs((dump.trainer - dump.rollout)[edge])))
        near = float(np.median(np.abs((dump.trainer - dump.rollout)[edge + step])))
        alone = size > FAR * near and near < 3 * inside  # another context fades over tokens
        if z > critical(2) and alone and size > 0.5 and unlikely.mean() > 0.5:
            words = (
                f"the {name} token of {len(edge)} runs of real tokens differs by {size:.2g} nats "
                f"(median), its neighbour by {near:.2g}: the mask is one token too wide there"
            )
            edges.append(Misalignment("mask", words, len(edge) / len(dump.row)))
    return edges


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
