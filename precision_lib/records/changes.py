"""What changed between two measurements of one metric: component, before, after, limit, reason."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

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

    def as_json(self) -> dict[str, Any]:
        """Everything under the attributes' names, and the message."""
        return {**asdict(self), "message": self.message}


@dataclass
class Changes:
    """What changed in one part of a record.

    Attributes:
        worse, better: beyond the limit on either side.
        obstacles: sentences, what could not be compared, or less than before.
        compared: number of comparisons that could have turned red.
    """

    worse: list[Change] = field(default_factory=list)
    better: list[Change] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    compared: int = 0


def times_the_limit(change: dict[str, Any]) -> float:
    """How many times a change, as :meth:`Change.as_json` gives it, is what was allowed.

    Infinite where nothing was.
    """
    before, after, limit = (change[name] for name in ("before", "after", "limit"))
    if not all(isinstance(x, int | float) for x in (before, after, limit)) or limit == before:
        return float("inf")
    return float((after - before) / (limit - before))


def grouped(changes: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Changes of one metric in several configurations as one: (the largest of them, how many).

    They are as :meth:`Change.as_json` gives them.
    """
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for change in changes:
        key = change["where"], change["component"], change["metric"]
        found.setdefault(key, []).append(change)
    return [(max(same, key=times_the_limit), len(same)) for same in found.values()]


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    # What is not finite is worse than any limit, and strict JSON has no word for it.
    return "not finite" if abs(value) >= LARGEST else f"{value:.4g}"
