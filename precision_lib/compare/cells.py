"""The metrics of all cells against a baseline.

The hazard. A metric that is not a number, whose noise floor the run raises itself, or whose limit
lies beyond what it can reach is never worse than anything. So the first is a regression by itself,
floors come from the baseline, a batch variance that rose is a regression, and metrics that could
not turn red are named and not counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from precision_lib.compare.baseline import Baseline, BaselineCell
from precision_lib.compare.comparison import Comparison
from precision_lib.compare.directions import DIRECTIONS, Direction, direction, worst_possible
from precision_lib.compare.inconclusive import Count, fewer
from precision_lib.compare.margins import FALSE_ALARMS, Margin, is_beyond, margin
from precision_lib.forensics.hypothesis import BATCH_VARIANCE
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell
from precision_lib.record.changes import Change, Nearest
from precision_lib.record.record import Record

#: Its distance from float64 is the noise of FP32 arithmetic itself.
REFERENCE_RUN = "fp32_baseline"
#: The value of a metric that a cell lacks because nothing was bad enough.
_NEVER = "never reached"


@dataclass(frozen=True)
class _Pair:
    """One metric of one cell in both records."""

    hypothesis: str
    configuration: str
    metric: str
    components: str
    before: Metric
    after: Metric
    how: Direction
    floor: float

    @property
    def name(self) -> str:
        return f"{self.hypothesis} {self.configuration} {self.metric}"

    def change(self, before: float, after: float | str, limit: float | str, why: str) -> Change:
        return Change(
            where=self.hypothesis,
            configuration=self.configuration,
            component=self.components,
            metric=self.metric,
            before=before,
            after=after,
            limit=limit,
            unit=self.after.unit,
            reason=why,
        )


def compare_cells(record: Record, baseline: Baseline) -> Comparison:
    """Compare every gated metric that both have, of configurations that are still the same."""
    pairs = list(_pairs(record, baseline))
    same_seed = is_same_seed(record, baseline)
    result, counts = Comparison(), list[Count]()
    for pair in pairs:
        if not is_finite(pair.after):
            why = "a value or its interval is not a number"
            change = pair.change(pair.before.value, "not finite", "finite", why)
            result += Comparison(worse=(change,), compared=1)
            continue
        counts.append(
            (pair.hypothesis, pair.configuration, pair.metric, pair.before.n, pair.after.n)
        )
        figures = pair.before, pair.after, pair.how, len(pairs), pair.floor
        result += _compare(pair, margin(*figures, same_seed=same_seed))
    result += _absent(record, baseline)
    return result + Comparison(inconclusive=tuple(fewer(counts, record.context)))


def _compare(pair: _Pair, limits: Margin) -> Comparison:
    """What became of one metric."""
    worse = pair.how.worse
    if not is_beyond(worst_possible(pair.metric, pair.after.unit), limits.limit, worse):
        return Comparison(blind=(pair.name,))
    share = _share(pair, limits)
    result = Comparison(
        compared=1, worst=Nearest(share, pair.name), moved=Nearest(abs(share), pair.name)
    )
    figures = limits.before, limits.after
    if is_beyond(limits.after, limits.limit, worse):
        result += Comparison(worse=(pair.change(*figures, limits.limit, _reason(pair)),))
    elif is_beyond(limits.after, limits.improved, -worse):
        result += Comparison(better=(pair.change(*figures, limits.improved, _reason(pair)),))
    return result


def is_same_seed(record: Record, baseline: Baseline) -> bool:
    """Whether both runs drew the same prompts, policies and first tokens."""
    seed = record.context.seed
    return seed is not None and seed == baseline.context.seed


def is_finite(metric: Metric) -> bool:
    """Whether value and interval are numbers."""
    return all(map(math.isfinite, (metric.value, metric.low, metric.high)))


def same_cells(record: Record, baseline: Baseline) -> Iterator[tuple[Cell, BaselineCell]]:
    """Cells that both have, of configurations that are still the same."""
    for cell in record.cells:
        name = cell.configuration
        known = baseline.cell(cell.hypothesis, name)
        if known is not None and record.matrix.get(name) == baseline.matrix.get(name):
            yield cell, known


def _pairs(record: Record, baseline: Baseline) -> Iterator[_Pair]:
    """Every gated metric that both have."""
    move = not is_same_seed(record, baseline)
    for cell, known in same_cells(record, baseline):
        for name, after in cell.metrics.items():
            how = direction(cell.hypothesis, name)
            before = known.metrics.get(name)
            if how.scale and before is not None:
                if move:
                    before = _moved(before, how, known.true_kl, cell.evidence.true_kl)
                floor = noise_floor(*cell.key, name, record, baseline)
                components = _components(record, cell.hypothesis)
                yield _Pair(*cell.key, name, components, before, after, how, floor)


def _moved(metric: Metric, how: Direction, before: float | None, after: float | None) -> Metric:
    """A metric of the baseline as it would be at the true KL of this run."""
    if not how.kl_exponent or not before or not after:
        return metric
    factor = (after / before) ** how.kl_exponent
    value, low, high = (x * factor for x in (metric.value, metric.low, metric.high))
    return replace(metric, value=value, low=low, high=high)


def noise_floor(
    hypothesis: str, configuration: str, metric: str, record: Record, baseline: Baseline
) -> float:
    """What a metric may differ by without anything having become worse; of the baseline alone.

    The largest of: what the *metric* differed by between two batch shapes (the damage metric; every
    metric where ``calibrate`` measured it), and how far FP32 itself was from float64: another order
    of the same FP32 operations is as far off, and no worse. A batch variance is made of damage, so
    the distance of the damage metric counts for it too.
    """
    floors = [golden_error(hypothesis, metric, baseline)]
    damage = record.thresholds[hypothesis].metric
    known = baseline.cell(hypothesis, configuration)
    if metric == damage and known is not None:
        floors.append(known.batch_shift or 0.0)
    if metric == BATCH_VARIANCE:
        floors.append(golden_error(hypothesis, damage, baseline))
    return max(*floors, baseline.calibrated(hypothesis, configuration, metric))


def golden_error(hypothesis: str, metric: str, baseline: Baseline) -> float:
    """Distance of ``fp32_baseline`` from the best value that a metric can have."""
    cell = baseline.cell(hypothesis, REFERENCE_RUN)
    golden = cell.metrics.get(metric) if cell else None
    how = direction(hypothesis, metric)
    is_error = how.scale in ("ratio", "magnitude", "difference") and math.isfinite(how.best)
    return abs(abs(golden.value) - how.best) if golden is not None and is_error else 0.0


def _share(pair: _Pair, limits: Margin) -> float:
    """The worsening as a share of the worsening that is allowed."""
    worse = (limits.after - limits.before) * pair.how.worse
    allowed = (limits.limit - limits.before) * pair.how.worse
    return worse / allowed if allowed > 0 else 0.0


def _components(record: Record, hypothesis: str) -> str:
    return ", ".join(record.thresholds[hypothesis].components)


def _reason(pair: _Pair) -> str:
    if pair.how.scale == "exact" and pair.before.value == 0:
        return "0 by construction"
    floor = f" and a floor of {pair.floor:.2g}" if pair.floor else ""
    return f"both intervals at {FALSE_ALARMS:.1%} per run{floor}"


def _absent(record: Record, baseline: Baseline) -> Comparison:
    """Metrics that only one side has, where absence is the best that can be."""
    result = Comparison()
    for cell, known in same_cells(record, baseline):
        for name, how in DIRECTIONS[cell.hypothesis].items():
            after, before = cell.metrics.get(name), known.metrics.get(name)
            measured = after or before
            if how.absent is None or measured is None or (after and before):
                continue
            change = Change(
                where=cell.hypothesis,
                configuration=cell.configuration,
                component=_components(record, cell.hypothesis),
                metric=name,
                before=before.value if before else _NEVER,
                after=after.value if after else _NEVER,
                limit=_NEVER,
                unit=measured.unit,
                reason=f"the range of {'the baseline' if after else 'this run'} ends before it",
            )
            result += Comparison(worse=(change,)) if after else Comparison(better=(change,))
    return result
