"""A PPO sweep against a baseline: runs that fail now, and gains that are lost now.

A run that no longer completes is a regression. A lost gain is one beyond both intervals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from precision_lib.compare.comparison import Comparison
from precision_lib.compare.directions import Direction
from precision_lib.compare.margins import FALSE_ALARMS, is_beyond, margin
from precision_lib.forensics.statistics import Metric
from precision_lib.jsonio import Json
from precision_lib.record.changes import Change
from precision_lib.record.codec import encode
from precision_lib.record.sweep import COMPLETED, Sweep

DAMAGE = "objective_gain_lost"
_LOST = Direction("difference")


@dataclass(frozen=True)
class TrainedCell:
    """Runs of one configuration: how many there were and failed, and what was lost."""

    failed: int
    runs: int
    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class TrainingSummary:
    """What a baseline keeps of a sweep; ``settings`` are those of PPO without the seed."""

    settings: Mapping[str, Json]
    max_steps: int
    cells: Mapping[str, TrainedCell]


def training_summary(sweep: Sweep | None) -> TrainingSummary | None:
    """What a baseline keeps of a sweep; None where none was run or nothing was compared."""
    if sweep is None or sweep.evidence is None:
        return None
    cells = sweep.evidence.cells
    # The intervals pool what configurations and seeds leave over, see sweep/blocks.py.
    clusters = (len(cells) - 1) * (len(sweep.evidence.seeds) - 1) + 1
    outcomes = {}
    for cell in cells:
        lost = {n: replace(m, clusters=clusters) for n, m in cell.metrics.items() if n == DAMAGE}
        failed = sum(status != COMPLETED for status in cell.statuses.values())
        outcomes[cell.configuration] = TrainedCell(failed, len(cell.statuses), lost)
    settings = {k: v for k, v in encode(sweep.settings).items() if k != "seed"}
    return TrainingSummary(settings, sweep.max_steps, outcomes)


def _switched_on(settings: Mapping[str, Json]) -> dict[str, Json]:
    """Without what is off: an earlier release did not have it, and trained the same."""
    return {name: value for name, value in settings.items() if value is not None}


def compare_training(sweep: Sweep | None, known: TrainingSummary | None) -> Comparison:
    """Compare a sweep with what a baseline keeps of one."""
    own = training_summary(sweep)
    if own is None or known is None or sweep is None:
        missing = [name for name, part in (("run", own), ("baseline", known)) if part is None]
        if len(missing) == 2:
            return Comparison()
        return Comparison(inconclusive=(f"the {missing[0]} holds no sweep, the other does",))
    for name, now, before in (
        ("settings", _switched_on(own.settings), _switched_on(known.settings)),
        ("max_steps", own.max_steps, known.max_steps),
    ):
        if now != before:
            other = f"other sweep: its {name} are {now}, the baseline's {before}"
            return Comparison(inconclusive=(other,))
    result = Comparison()
    if not sweep.complete:
        result += Comparison(inconclusive=("incomplete: runs of the sweep did not end",))
    if own.cells.keys() != known.cells.keys():
        apart = ", ".join(sorted(own.cells.keys() ^ known.cells.keys()))
        other = f"other sweep: only one of the two trained {apart}"
        result += Comparison(inconclusive=(other,))
    for name in own.cells.keys() & known.cells.keys():
        result += _compare(name, known.cells[name], own.cells[name], len(own.cells))
    return result


def _compare(name: str, before: TrainedCell, after: TrainedCell, cells: int) -> Comparison:
    """One configuration: runs that fail, and the gain that is lost."""
    result = Comparison(compared=1)
    if after.runs < before.runs:
        fewer = f"fewer elements: {after.runs} runs of {name}, the baseline has {before.runs}"
        result += Comparison(inconclusive=(fewer,))
    old, new = before.failed / before.runs, after.failed / after.runs
    if new != old:
        change = _change(name, "failed_runs", old, new, old, "share of runs", "runs that end")
        result += Comparison(worse=(change,)) if new > old else Comparison(better=(change,))
    if DAMAGE not in before.metrics or DAMAGE not in after.metrics:
        return result
    limits = margin(before.metrics[DAMAGE], after.metrics[DAMAGE], _LOST, 2 * cells)
    about = after.metrics[DAMAGE].unit, f"both intervals at {FALSE_ALARMS:.1%} per sweep"
    figures = DAMAGE, limits.before, limits.after
    result += Comparison(compared=1)
    if is_beyond(limits.after, limits.limit, 1):
        result += Comparison(worse=(_change(name, *figures, limits.limit, *about),))
    elif is_beyond(limits.after, limits.improved, -1):
        result += Comparison(better=(_change(name, *figures, limits.improved, *about),))
    return result


def _change(
    name: str, metric: str, before: float, after: float, limit: float, unit: str, reason: str
) -> Change:
    return Change("training", name, "policy", metric, before, after, limit, unit, reason)
