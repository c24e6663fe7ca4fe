"""The gate: a run against a baseline, metric by metric.

The hazard. A gate fails silently in three ways: it compares nothing and is green, it turns red
for what is no regression until somebody loosens it, or it says "failed" and no more. So the
verdict has three values, nothing compared is never the good one, improvements are reported and
not punished, and every regression says component, metric, before, after and limit.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from precision_lib.exit_codes import INCONCLUSIVE, OK, REGRESSION
from precision_lib.records.baseline import Baseline
from precision_lib.records.changes import Change
from precision_lib.records.core_changes import core_changes
from precision_lib.records.directions import DIRECTIONS, Direction, direction
from precision_lib.records.margins import FALSE_ALARMS, Margin, is_beyond, margin
from precision_lib.records.obstacles import (
    changed_matrix,
    fewer,
    foreign,
    unmatched,
    untrustworthy,
)
from precision_lib.records.training_changes import training_changes

#: The configuration whose distance from float64 is the noise of FP32 arithmetic itself.
GOLDEN = "fp32_baseline"
#: The value of a metric that a cell lacks because nothing was bad enough.
_NEVER = "never reached"
VERDICTS = {OK: "no regression", REGRESSION: "regression", INCONCLUSIVE: "inconclusive"}


@dataclass(frozen=True)
class Judgement:
    """What the gate says of a run.

    Attributes:
        regressions, improvements: metrics beyond their limit on either side.
        obstacles: sentences, what could not be compared and why.
        compared: number of comparisons.
        worst: the largest worsening as a share of what was allowed, and of which metric.
        moved: the same of the largest change, for the better or the worse.
    """

    regressions: tuple[Change, ...]
    improvements: tuple[Change, ...]
    obstacles: tuple[str, ...]
    compared: int
    worst: tuple[float, str] = (0.0, "")
    moved: tuple[float, str] = (0.0, "")

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
            "obstacles": list(self.obstacles),
            "improvements": [c.as_json() for c in self.improvements],
            "worst": {"share_of_limit": self.worst[0], "metric": self.worst[1]},
            "moved": {"share_of_limit": self.moved[0], "metric": self.moved[1]},
        }


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
    changed = changed_matrix(block, baseline)
    obstacles = [*untrustworthy(block), *changed, *unmatched(block, baseline)]
    pairs = list(_pairs(block, baseline))
    found: list[tuple[_Pair, Margin]] = []
    for pair in pairs:
        limits = margin(pair.before, pair.after, pair.how, len(pairs), pair.floor)
        found.append((pair, limits))
    counts = ((p.hypothesis, p.configuration, p.metric, p.before["n"], p.after["n"]) for p in pairs)
    obstacles += fewer(counts, block["context"])
    core = core_changes(block, baseline)
    training = training_changes(block.get("training") or {}, baseline)
    formats_worse, formats_better = _formats(block, baseline)
    came, gone = _absent(block, baseline)
    worse = [_change(block, p, m, m.limit) for p, m in found if _is_worse(p, m)]
    better = [_change(block, p, m, m.improved) for p, m in found if _is_better(p, m)]
    return Judgement(
        (*core.worse, *formats_worse, *worse, *came, *training.worse),
        (*core.better, *formats_better, *better, *gone, *training.better),
        (*obstacles, *core.obstacles, *training.obstacles),
        len(pairs) + core.compared + training.compared,
        max(((_share(p, m), _name(p)) for p, m in found), default=(0.0, "")),
        max(((abs(_share(p, m)), _name(p)) for p, m in found), default=(0.0, "")),
    )


def _same_cells(
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
    """Every gated metric that both have, of configurations that are still the same."""
    for cell, known in _same_cells(block, baseline):
        hypothesis, configuration = cell["hypothesis"], cell["configuration"]
        for metric, after in cell["metrics"].items():
            how = direction(hypothesis, metric)
            before = known["metrics"].get(metric)
            if how.scale and before is not None:
                before = _moved(before, how, known.get("true_kl"), cell["evidence"].get("true_kl"))
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
    """What a metric may differ by without anything having become worse.

    The largest of: what the device differed by between two runs of the same, in this run and in
    the baseline (of the damage metric; of every metric where ``calibrate`` measured it), and how
    far FP32 itself was from float64: another order of the same FP32 operations is as far off, and
    no worse.
    """
    floors = [0.0]
    if metric == block["thresholds"][hypothesis]["metric"]:
        for record in (block, baseline):
            floor = record.get("noise_floors", {}).get(hypothesis, {}).get(configuration)
            floors += [floor["value"]] if floor else []
    calibrated = baseline.get("calibration", {}).get("floors", {}).get(hypothesis, {})
    floors.append(calibrated.get(configuration, {}).get(metric, 0.0))
    golden = baseline["cells"].get(hypothesis, {}).get(GOLDEN, {}).get("metrics", {}).get(metric)
    how = direction(hypothesis, metric)
    is_error = how.scale in ("ratio", "magnitude", "difference") and math.isfinite(how.best)
    if golden is not None and is_error:
        floors.append(abs(abs(golden["value"]) - how.best))
    return max(floors)


def _is_worse(pair: _Pair, limits: Margin) -> bool:
    return is_beyond(limits.after, limits.limit, pair.how.worse)


def _is_better(pair: _Pair, limits: Margin) -> bool:
    return is_beyond(limits.after, limits.improved, -pair.how.worse)


def _share(pair: _Pair, limits: Margin) -> float:
    """The worsening as a share of the worsening that is allowed."""
    worse = (limits.after - limits.before) * pair.how.worse
    allowed = (limits.limit - limits.before) * pair.how.worse
    return worse / allowed + 0.0 if allowed > 0 else 0.0  # + 0.0: no "-0 %"


def _name(pair: _Pair) -> str:
    return f"{pair.hypothesis} {pair.configuration} {pair.metric}"


def _change(block: dict[str, Any], pair: _Pair, limits: Margin, limit: float) -> Change:
    return Change(
        where=pair.hypothesis,
        configuration=pair.configuration,
        component=", ".join(block["thresholds"][pair.hypothesis]["components"]),
        metric=pair.metric,
        before=limits.before,
        after=limits.after,
        limit=limit,
        unit=pair.after["unit"],
        reason=_reason(pair),
    )


def _reason(pair: _Pair) -> str:
    if pair.how.scale == "exact" and pair.before["value"] == 0:
        return "0 by construction"
    floor = f" and a floor of {pair.floor:.2g}" if pair.floor else ""
    return f"both intervals at {FALSE_ALARMS:.1%} per run{floor}"


def _absent(block: dict[str, Any], baseline: Baseline) -> tuple[list[Change], list[Change]]:
    """Metrics that only one side has, where absence is the best that can be: (worse, better)."""
    worse: list[Change] = []
    better: list[Change] = []
    for cell, known in _same_cells(block, baseline):
        hypothesis, here, there = cell["hypothesis"], cell["metrics"], known["metrics"]
        for metric, how in DIRECTIONS[hypothesis].items():
            if how.absent is None or (metric in here) == (metric in there):
                continue
            measured = (here if metric in here else there)[metric]
            came = metric in here
            change = Change(
                where=hypothesis,
                configuration=cell["configuration"],
                component=", ".join(block["thresholds"][hypothesis]["components"]),
                metric=metric,
                before=_NEVER if came else measured["value"],
                after=measured["value"] if came else _NEVER,
                limit=_NEVER,
                unit=measured["unit"],
                reason=f"the range of {'the baseline' if came else 'this run'} ends before it",
            )
            (worse if came else better).append(change)
    return worse, better


def _formats(block: dict[str, Any], baseline: Baseline) -> tuple[list[Change], list[Change]]:
    """Components that were seen to run in another format than before: (narrower, wider)."""
    worse: list[Change] = []
    better: list[Change] = []
    there = baseline["context"].get("observed_formats", {})
    for configuration, seen in block["context"].get("observed_formats", {}).items():
        same = block["matrix"].get(configuration) == baseline["matrix"].get(configuration)
        for component, after in seen.items():
            before = there.get(configuration, {}).get(component, after)
            if before == after or not same or _size(before) == _size(after):
                continue
            change = Change(
                where="formats",
                configuration=configuration,
                component=component,
                metric="observed format",
                before=before,
                after=after,
                limit=before,
                unit="",
                reason="as the tensors had it at run time",
            )
            smaller = any(a < b for a, b in zip(_size(after), _size(before), strict=True))
            (worse if smaller else better).append(change)
    return worse, better


def _size(observed: str) -> tuple[int, int, int]:
    """Significand bits of the narrowest and the widest format seen, and the smallest range.

    ``bf16+fp32`` was both; ``bf16 in fp32`` holds the numbers of bf16.
    """
    from precision_lib.formats import get_format  # imports torch, which collecting does without

    formats = [get_format(seen.split()[0]) for seen in observed.split("+")]
    digits = [fmt.significand_bits for fmt in formats]
    return min(digits), max(digits), min(fmt.emax for fmt in formats)
