"""The direction of every metric of a cell, as its hypothesis declares it.

A metric without one stops the gate.
"""

import math

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.metrics.direction import Direction

__all__ = ["DIRECTIONS", "Direction", "direction", "worst_possible"]

DIRECTIONS: dict[str, dict[str, Direction]] = {h: d.directions for h, d in HYPOTHESES.items()}
_WORST = {
    metric: row.worst
    for rows in DIRECTIONS.values()
    for metric, row in rows.items()
    if row.worst is not None
}


def direction(hypothesis: str, metric: str) -> Direction:
    """The row of a metric.

    Raises:
        ValueError: a metric without one, so that nobody adds a metric that no gate looks at.
    """
    try:
        return DIRECTIONS[hypothesis][metric]
    except KeyError:
        raise ValueError(
            f"{hypothesis} {metric} has no direction: say in the declaration of {hypothesis} "
            "(forensics/) which way it gets worse"
        ) from None


def worst_possible(metric: str, unit: str) -> float:
    """As bad as a metric can be at all: a limit beyond it could never be passed."""
    return _WORST.get(metric, 1.0 if unit.startswith("share of") else math.inf)
