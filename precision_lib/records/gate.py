"""The gate: a run against a baseline, metric by metric.

The hazard. A gate that compared nothing must not be green. The verdict has three values,
regression, no regression and inconclusive; nothing compared is inconclusive; improvements are
reported. Every regression says component, metric, before, after and limit.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from precision_lib.exit_codes import INCONCLUSIVE, OK, REGRESSION
from precision_lib.records.baseline import Baseline
from precision_lib.records.cell_changes import cell_changes
from precision_lib.records.changes import Change
from precision_lib.records.core_changes import core_changes
from precision_lib.records.format_changes import format_changes
from precision_lib.records.inconclusive import (
    changed_matrix,
    elsewhere,
    fewer,
    foreign,
    new_hypotheses,
    unmatched,
    untrustworthy,
)
from precision_lib.records.training_changes import training_changes

VERDICTS = {OK: "no regression", REGRESSION: "regression", INCONCLUSIVE: "inconclusive"}


@dataclass(frozen=True)
class Judgement:
    """What the gate says of a run.

    Attributes:
        regressions, improvements: metrics beyond their limit on either side.
        obstacles: sentences, what could not be compared and why.
        compared: number of comparisons that could have turned red.
        blind: metrics that could not, since their limit lies beyond what they can reach.
        worst: the largest worsening as a share of what was allowed, and of which metric.
        moved: the same of the largest change, for the better or the worse.
        new: hypotheses that the baseline does not know, with their cells: they are not gated yet.
    """

    regressions: tuple[Change, ...]
    improvements: tuple[Change, ...]
    obstacles: tuple[str, ...]
    compared: int
    blind: tuple[str, ...] = ()
    worst: tuple[float, str] = (0.0, "")
    moved: tuple[float, str] = (0.0, "")
    new: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, 1 for a regression, 2 when something could not be compared, or nothing was."""
        if self.regressions:
            return REGRESSION
        return INCONCLUSIVE if self.obstacles or not self.compared else OK

    @property
    def verdict(self) -> str:
        """The exit code in words."""
        return VERDICTS[self.exit_code]

    def with_obstacles(self, more: Iterable[str]) -> "Judgement":
        """The same with more sentences about what could not be compared, in front of the others."""
        return replace(self, obstacles=(*more, *self.obstacles))

    def as_json(self) -> dict[str, Any]:
        """What the record keeps beside its ``regressions``."""
        return {
            "verdict": self.verdict,
            "compared": self.compared,
            "blind": list(self.blind),
            "new": list(self.new),
            "obstacles": list(self.obstacles),
            "improvements": [c.as_json() for c in self.improvements],
            "worst": {"share_of_limit": self.worst[0], "metric": self.worst[1]},
            "moved": {"share_of_limit": self.moved[0], "metric": self.moved[1]},
        }


def judge(block: dict[str, Any], baseline: Baseline) -> Judgement:
    """Compare a record's ``precision`` block with a baseline.

    Raises:
        ValueError: a metric that ``directions.py`` does not know.
    """
    apart = foreign(block, baseline)
    if apart:
        return Judgement((), (), (*untrustworthy(block), *apart), 0)
    return compare(block, baseline)


def compare(block: dict[str, Any], baseline: Baseline) -> Judgement:
    """:func:`judge` without asking whether the two are of the same thing."""
    cells = cell_changes(block, baseline)
    core = core_changes(block, baseline)
    training = training_changes(block.get("training") or {}, baseline)
    formats_worse, formats_better = format_changes(block, baseline)
    obstacles = [
        *untrustworthy(block),
        *changed_matrix(block, baseline),
        *elsewhere(block, baseline),
        *unmatched(block, baseline),
        *fewer(cells.counts, block["context"]),
    ]
    return Judgement(
        (*core.worse, *formats_worse, *cells.worse, *training.worse),
        (*core.better, *formats_better, *cells.better, *training.better),
        (*obstacles, *core.obstacles, *training.obstacles),
        cells.compared + core.compared + training.compared,
        tuple(cells.blind),
        cells.worst,
        cells.moved,
        tuple(f"{h}, {count} cells" for h, count in new_hypotheses(block, baseline).items()),
    )
