"""The errors of checks that are known to fail, against a baseline.

The hazard. A known failure fails no louder when its error grows a thousand times: its name stands
on the list, and the run is green. So those that have an error and an input on the list are measured
on that input, and what grows by more than chance explains is a regression. Chance has much room
here: the same arithmetic in another order rounds otherwise, and an error that happened to be small
before may be of full size now. Rounding errors of one size are spread evenly over it, so that one
is r times another with a probability of at most 1/r; of n inputs, m have grown by r or more with
that of a binomial tail. The three formats of one region round alike, so each format is judged by
itself.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from precision_lib.records.changes import LARGEST, Change
from precision_lib.records.margins import FALSE_ALARMS

#: Check to a digest of the input that failed and the error in units of the limit.
Errors = Mapping[str, tuple[str, float]]
_FORMATS = ("fp32", "bf16", "fp16")


@dataclass
class Paired:
    """The known errors of one function in two runs.

    Attributes:
        families: format ("" for checks without one) to check to (before, after).
        compared: how many checks failed on the same input in both.
        elsewhere: checks that failed in both, on another input now.
    """

    families: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    compared: int = 0
    elsewhere: list[str] = field(default_factory=list)


def measured_errors(counts: Mapping[str, Any], failures: Mapping[str, Any]) -> dict[str, Any]:
    """The :data:`Errors` of a function; 0 where a check has none (it raised, it is exact).

    Args:
        counts, failures: of the record's ``conformance``: of the function, and of all.
    """
    return {
        name: (_digest(failures[name]["input"]), min(float(failures[name]["times"]), LARGEST))
        for name in counts["failed"]
        if name in failures
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8] if text else ""


def paired(before: Errors, after: Errors) -> Paired:
    """What can be compared: a check with an error before that fails now, on the same input.

    No number where there was one (it raises now) is the largest error that there is. Two that are
    not finite say nothing of each other; checks on one input are one.
    """
    found = Paired()
    seen = set()
    for name, (digest, old) in before.items():
        if not digest or not old > 0 or name not in after:
            continue
        if after[name][0] != digest:
            found.elsewhere.append(name)
            continue
        found.compared += 1
        new = after[name][1] or LARGEST
        last = name.rstrip("]").rpartition("-")[2]
        family = last if last in _FORMATS else ""
        if (family, digest) not in seen and not old == new == LARGEST:
            seen.add((family, digest))
            found.families.setdefault(family, {})[name] = old, new
    return found


def error_growth(
    function: str,
    pairs: Mapping[str, tuple[float, float]],
    families: int,
    *,
    shrunk: bool = False,
) -> list[Change]:
    """The growth of a family of known errors, where chance does not explain it; else nothing.

    For every m the m-th largest ratio r gives P(Binomial(n, 1/r) >= m); the least likely of them is
    judged, at 0.001 over n and the number of families.

    Args:
        pairs: of one family of :func:`paired`.
        families: how many are judged in this run.
        shrunk: look for errors that shrank instead.
    """
    sign = -1 if shrunk else 1
    powers = {k: sign * (math.log2(new) - math.log2(old)) for k, (old, new) in pairs.items()}
    ranked = sorted(powers, key=lambda name: -powers[name])
    count, allowed = len(ranked), FALSE_ALARMS / (families * max(len(ranked), 1))
    chances = [_chance(count, m, powers[name]) for m, name in enumerate(ranked, 1)]
    if not chances or min(chances) >= allowed:
        return []
    moved = chances.index(min(chances)) + 1
    old, new = (
        math.exp(math.fsum(math.log(pairs[name][side]) for name in ranked[:moved]) / moved)
        for side in (0, 1)
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
