"""The errors of checks that are known to fail, against a baseline.

The hazard. A known failure fails no louder when its error grows a thousand times: its name stands
on the list, and the run is green. So each is measured on the input that the list keeps, and what
grows by more than chance explains is a regression. Chance has much room here: the same arithmetic
in another order rounds otherwise, and an error that happened to be small before may be of full size
now. Rounding errors of one size are spread evenly over it, so that one is r times another with a
probability of at most 1/r; of n inputs, m have grown by r or more with that of a binomial tail.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from precision_lib.records.changes import LARGEST, Change
from precision_lib.records.margins import FALSE_ALARMS


def measured_errors(
    counts: Mapping[str, Any], failures: Mapping[str, Any]
) -> dict[str, tuple[str, float]]:
    """Failed check of a function to a digest of the input and the error in units of the limit.

    Args:
        counts, failures: of the record's ``conformance``: of the function, and of all.

    Returns:
        Nothing of checks that have no limit or whose input is too large to be kept.
    """
    return {
        name: (_digest(failures[name]["input"]), min(float(failures[name]["times"]), LARGEST))
        for name in counts["failed"]
        if failures.get(name, {}).get("input") and float(failures[name]["times"]) > 0
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def error_growth(
    function: str,
    before: Mapping[str, tuple[str, float]],
    after: Mapping[str, tuple[str, float]],
    functions: int,
    *,
    shrunk: bool = False,
) -> list[Change]:
    """The growth of a function's known errors, where chance does not explain it; else nothing.

    For every m the m-th largest ratio r gives P(Binomial(n, 1/r) >= m); the least likely of them is
    judged, at 0.001 over n and the number of functions.

    Args:
        before, after: of :func:`measured_errors`; only checks on one and the same input count.
        functions: how many are judged in this run.
        shrunk: look for errors that shrank instead.
    """
    same = [name for name in before if name in after and before[name][0] == after[name][0]]
    sign = -1 if shrunk else 1
    powers = {
        name: sign * (math.log2(after[name][1]) - math.log2(before[name][1])) for name in same
    }
    ranked = sorted(powers, key=lambda name: -powers[name])
    count, allowed = len(ranked), FALSE_ALARMS / (functions * max(len(ranked), 1))
    chances = [_chance(count, m, powers[name]) for m, name in enumerate(ranked, 1)]
    if not chances or min(chances) >= allowed:
        return []
    moved = chances.index(min(chances)) + 1
    old, new = (
        math.exp(sum(math.log(errors[name][1]) for name in ranked[:moved]) / moved)
        for errors in (before, after)
    )
    how = f"{'shrank' if shrunk else 'grew'} by {2.0 ** powers[ranked[moved - 1]]:.3g} or more"
    return [
        Change(
            where="core",
            configuration="",
            component=function,
            metric="known_errors",
            before=old,
            after=new,
            limit=old * 2.0 ** (sign * _explained(count, moved, allowed)),
            unit="times the limit",
            reason=f"{moved} of {count} known failures {how}: {ranked[0]}",
        )
    ]


def _chance(count: int, moved: int, power: float) -> float:
    """P(Binomial(count, 2^-power) >= moved); 1 for a power of at most 0."""
    if power <= 0:
        return 1.0
    p = 2.0**-power
    return math.fsum(
        math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(moved, count + 1)
    )


def _explained(count: int, moved: int, allowed: float) -> float:
    """The power of 2 up to which chance explains that ``moved`` of ``count`` grew."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        likely = _chance(count, moved, middle) >= allowed
        low, high = (middle, high) if likely else (low, middle)
    return high
