"""What changed between two measurements of one metric: component, before, after, limit, reason."""

from collections.abc import Iterable
from dataclasses import dataclass

#: An error of so many times its limit stands for a result that is not finite.
LARGEST = 1e300


@dataclass(frozen=True)
class Change:
    """One metric that came out on the far side of its limit.

    Attributes:
        where: a hypothesis, or ``core`` for a function of the PPO core.
        configuration: of the matrix; "" for the core.
        component: of the pipeline that the metric measures, or the function of the core.
        metric, unit: its name and what it counts.
        before, after: of the baseline and of this run.
        limit: beyond it on the worse side it is a regression, on the better side an improvement.
        reason: what made the limit.
    """

    where: str
    configuration: str
    component: str
    metric: str
    before: float | str
    after: float | str
    limit: float | str
    unit: str
    reason: str

    @property
    def message(self) -> str:
        """One line: component, metric, before, after, limit."""
        place = f"{self.where} {self.configuration}".strip()
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{place}: {self.metric} {_shown(self.before)} -> {_shown(self.after)}{unit}, limit "
            f"{_shown(self.limit)} ({self.reason}); component: {self.component}"
        )

    @property
    def times_the_limit(self) -> float:
        """How many times the change is what was allowed; infinite where nothing was."""
        before, after, limit = self.before, self.after, self.limit
        if isinstance(before, str) or isinstance(after, str) or isinstance(limit, str):
            return float("inf")
        return float("inf") if limit == before else float((after - before) / (limit - before))


@dataclass(frozen=True)
class Nearest:
    """How far a metric went, as a share of what was allowed."""

    share_of_limit: float = 0.0
    metric: str = ""


#: Nothing was compared.
NOWHERE = Nearest()


@dataclass(frozen=True)
class Gate:
    """What the gate says beside the regressions, which the record holds.

    Attributes:
        baseline: its file. verdict: one of three. compared: comparisons that could turn red.
        blind: metrics that could not. obstacles: sentences, what could not be compared.
        worst, moved: the largest worsening and the largest change.
        new: hypotheses that the baseline does not know, with their cells.
    """

    baseline: str
    verdict: str
    compared: int
    blind: tuple[str, ...]
    obstacles: tuple[str, ...]
    improvements: tuple[Change, ...]
    worst: Nearest
    moved: Nearest = NOWHERE
    new: tuple[str, ...] = ()


def grouped(changes: Iterable[Change]) -> list[tuple[Change, int]]:
    """Changes of one metric in several configurations as one: (the largest of them, how many)."""
    by_metric: dict[tuple[str, str, str], list[Change]] = {}
    for change in changes:
        key = change.where, change.component, change.metric
        by_metric.setdefault(key, []).append(change)
    return [(max(same, key=lambda c: c.times_the_limit), len(same)) for same in by_metric.values()]


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    # What is not finite is worse than any limit, and strict JSON has no word for it.
    return "not finite" if abs(value) >= LARGEST else f"{value:.4g}"
