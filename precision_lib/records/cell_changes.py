"""The metrics of all cells against a baseline.

The hazard. A metric that is not a number, whose noise floor the run raises itself, or whose limit
lies beyond what it can reach is never worse than anything. So the first is a regression by itself,
floors come from the baseline, a batch variance that rose is a regression, and metrics that could
not turn red are named and not counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from precision_lib.forensics.hypothesis import BATCH_VARIANCE
from precision_lib.records.baseline import Baseline
from precision_lib.records.changes import Change, Changes
from precision_lib.records.directions import DIRECTIONS, Direction, direction, worst_possible
from precision_lib.records.margins import FALSE_ALARMS, Margin, is_beyond, margin

#: Its distance from float64 is the noise of FP32 arithmetic itself.
REFERENCE_RUN = "fp32_baseline"
#: The value of a metric that a cell lacks because nothing was bad enough.
_NEVER = "never reached"
#: hypothesis, configuration, metric, elements before, elements after
Count = tuple[str, str, str, int, int]


@dataclass
class CellChanges(Changes):
    """What changed in the cells.

    Attributes:
        blind: comparisons that could not have turned red.
        counts: of elements, for :func:`obstacles.fewer`.
        worst: largest worsening as a share of what was allowed, and of which metric; moved: the
            same of the largest change either way.
    """

    blind: list[str] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    worst: tuple[float, str] = (0.0, "")
    moved: tuple[float, str] = (0.0, "")


@dataclass(frozen=True)
class _Pair:
    """One metric of one cell in both records."""

    hypothesis: str
    configuration: str
    metric: str
    before: dict[str, Any]
    after: dict[str, Any]
    how: Direction
    floor: float

    @property
    def name(self) -> str:
        return f"{self.hypothesis} {self.configuration} {self.metric}"


def cell_changes(block: dict[str, Any], baseline: Baseline) -> CellChanges:
    """Compare every gated metric that both have, of configurations that are still the same."""
    found = CellChanges()
    pairs = list(_pairs(block, baseline))
    same_seed = is_same_seed(block, baseline)
    for pair in pairs:
        if not is_finite(pair.after):
            figures = pair.before["value"], "not finite", "finite"
            why = "a value or its interval is not a number"
            found.worse.append(_change(block, pair, *figures, why))
            found.compared += 1
            continue
        limits = margin(
            pair.before, pair.after, pair.how, len(pairs), pair.floor, same_seed=same_seed
        )
        _judge_pair(block, pair, limits, found)
    came, gone = _absent(block, baseline)
    found.worse += came
    found.better += gone
    return found


def _judge_pair(block: dict[str, Any], pair: _Pair, limits: Margin, found: CellChanges) -> None:
    """Put what became of one metric into ``found``."""
    worse = pair.how.worse
    found.counts.append(
        (pair.hypothesis, pair.configuration, pair.metric, pair.before["n"], pair.after["n"])
    )
    extreme = worst_possible(pair.metric, pair.after["unit"])
    if not is_beyond(extreme, limits.limit, worse):
        found.blind.append(pair.name)
        return
    found.compared += 1
    share = _share(pair, limits)
    found.worst = max(found.worst, (share, pair.name))
    found.moved = max(found.moved, (abs(share), pair.name))
    figures = limits.before, limits.after
    if is_beyond(limits.after, limits.limit, worse):
        found.worse.append(_change(block, pair, *figures, limits.limit, _reason(pair)))
    elif is_beyond(limits.after, limits.improved, -worse):
        found.better.append(_change(block, pair, *figures, limits.improved, _reason(pair)))


def is_same_seed(block: dict[str, Any], baseline: Baseline) -> bool:
    """Whether both runs drew the same prompts, policies and first tokens."""
    seeds = [record["context"].get("seed") for record in (block, baseline)]
    return seeds[0] is not None and seeds[0] == seeds[1]


def is_finite(metric: dict[str, Any]) -> bool:
    """Whether value and interval are numbers."""
    return all(
        isinstance(metric.get(name), int | float) and math.isfinite(metric[name])
        for name in ("value", "low", "high")
    )


def same_cells(
    block: dict[str, Any], baseline: Baseline
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Cells that both have, of configurations that are still the same: (this run's, baseline's)."""
    for cell in block["cells"]:
        configuration = cell["configuration"]
        same = block["matrix"].get(configuration) == baseline["matrix"].get(configuration)
        known = baseline["cells"].get(cell["hypothesis"], {}).get(configuration)
        if known is not None and same:
            yield cell, known


def _pairs(block: dict[str, Any], baseline: Baseline) -> Iterator[_Pair]:
    """Every gated metric that both have."""
    move = not is_same_seed(block, baseline)
    for cell, known in same_cells(block, baseline):
        hypothesis, configuration = cell["hypothesis"], cell["configuration"]
        for metric, after in cell["metrics"].items():
            how = direction(hypothesis, metric)
            before = known["metrics"].get(metric)
            if how.scale and before is not None:
                if move:
                    kls = known.get("true_kl"), cell["evidence"].get("true_kl")
                    before = _moved(before, how, *kls)
                floor = noise_floor(hypothesis, configuration, metric, block, baseline)
                yield _Pair(hypothesis, configuration, metric, before, after, how, floor)


def _moved(
    metric: dict[str, Any], how: Direction, before: float | None, after: float | None
) -> dict[str, Any]:
    """A metric of the baseline as it would be at the true KL of this run."""
    if not how.kl_exponent or not before or not after:
        return metric
    factor = (after / before) ** how.kl_exponent
    return metric | {name: metric[name] * factor for name in ("value", "low", "high")}


def noise_floor(
    hypothesis: str, configuration: str, metric: str, block: dict[str, Any], baseline: Baseline
) -> float:
    """What a metric may differ by without anything having become worse; of the baseline alone.

    The largest of: what the *metric* differed by between two batch shapes (the damage metric; every
    metric where ``calibrate`` measured it), and how far FP32 itself was from float64: another order
    of the same FP32 operations is as far off, and no worse. A batch variance is made of damage, so
    the distance of the damage metric counts for it too.
    """
    floors = [golden_error(hypothesis, metric, baseline)]
    damage = block["thresholds"][hypothesis]["metric"]
    known = baseline["cells"].get(hypothesis, {}).get(configuration, {})
    if metric == damage:
        floors.append(known.get("batch_shift", 0.0))
    if metric == BATCH_VARIANCE:
        floors.append(golden_error(hypothesis, damage, baseline))
    calibrated = baseline.get("calibration", {}).get("floors", {}).get(hypothesis, {})
    floors.append(calibrated.get(configuration, {}).get(metric, 0.0))
    return max(floors)


def golden_error(hypothesis: str, metric: str, baseline: Baseline) -> float:
    """Distance of ``fp32_baseline`` from the best value that a metric can have."""
    golden = (
        baseline["cells"].get(hypothesis, {}).get(REFERENCE_RUN, {}).get("metrics", {}).get(metric)
    )
    how = direction(hypothesis, metric)
    is_error = how.scale in ("ratio", "magnitude", "difference") and math.isfinite(how.best)
    return abs(abs(golden["value"]) - how.best) if golden is not None and is_error else 0.0


def _share(pair: _Pair, limits: Margin) -> float:
    """The worsening as a share of the worsening that is allowed."""
    worse = (limits.after - limits.before) * pair.how.worse
    allowed = (limits.limit - limits.before) * pair.how.worse
    return worse / allowed if allowed > 0 else 0.0


def _change(
    block: dict[str, Any],
    pair: _Pair,
    before: float,
    after: float | str,
    limit: float | str,
    reason: str,
) -> Change:
    return Change(
        where=pair.hypothesis,
        configuration=pair.configuration,
        component=_components(block, pair.hypothesis),
        metric=pair.metric,
        before=before,
        after=after,
        limit=limit,
        unit=pair.after.get("unit", ""),
        reason=reason,
    )


def _components(block: dict[str, Any], hypothesis: str) -> str:
    return ", ".join(block["thresholds"][hypothesis]["components"])


def _reason(pair: _Pair) -> str:
    if pair.how.scale == "exact" and pair.before["value"] == 0:
        return "0 by construction"
    floor = f" and a floor of {pair.floor:.2g}" if pair.floor else ""
    return f"both intervals at {FALSE_ALARMS:.1%} per run{floor}"


def _absent(block: dict[str, Any], baseline: Baseline) -> tuple[list[Change], list[Change]]:
    """Metrics that only one side has, where absence is the best that can be: (worse, better)."""
    worse: list[Change] = []
    better: list[Change] = []
    for cell, known in same_cells(block, baseline):
        hypothesis, here, there = cell["hypothesis"], cell["metrics"], known["metrics"]
        for metric, how in DIRECTIONS[hypothesis].items():
            if how.absent is None or (metric in here) == (metric in there):
                continue
            measured = (here if metric in here else there)[metric]
            came = metric in here
            change = Change(
                where=hypothesis,
                configuration=cell["configuration"],
                component=_components(block, hypothesis),
                metric=metric,
                before=_NEVER if came else measured["value"],
                after=measured["value"] if came else _NEVER,
                limit=_NEVER,
                unit=measured["unit"],
                reason=f"the range of {'the baseline' if came else 'this run'} ends before it",
            )
            (worse if came else better).append(change)
    return worse, better
