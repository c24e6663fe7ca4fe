"""What keeps a run from being compared with a baseline, each as one sentence.

The hazard. A comparison of two models, two devices or two budgets gives a verdict like any other,
and a run that measured half of it finds no regression. Each of these is named, and none is green.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from statistics import NormalDist

from precision_lib.compare.baseline import Baseline, device_class
from precision_lib.compare.directions import DIRECTIONS
from precision_lib.compare.margins import FALSE_ALARMS
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.record.conformance import Conformance
from precision_lib.record.context import Context, Model, flattened
from precision_lib.record.record import Record

#: Parts of the context that have to agree.
_SETTINGS = (
    "budget",
    "prompts",
    "trajectories",
    *(h.context for h in HYPOTHESES.values() if h.context),
)
_MODELS = {"checkpoint": "the checkpoint", "reward_model": "the reward model"}
#: Of the settings, what depends on the seed and on the last bit, or is compared by itself.
_MAY_DIFFER = ("seed", "shards", "models")
#: Metrics whose number of elements depends on what was sampled, with the most that a sequence adds.
_PAIRS = ("reward_tie_frac", "reward_kendall_tau")
#: True KLs further apart than this factor are two operating points; a seed misses by some 10 %.
_FARTHEST_KL = 2.0
#: Hypothesis, configuration, metric, elements of the baseline, elements of this run.
Count = tuple[str, str, str, int, int]


def foreign(record: Record, baseline: Baseline) -> list[str]:
    """Why the two measurements are not of the same thing; empty where they are.

    Device class, checkpoints, settings.
    """
    now, before = record.context, baseline.context
    if now.device is None:
        return ["the run measured nothing: it names no device"]
    reasons = foreign_context(now, baseline)
    unsaid = [
        key
        for key in (*_SETTINGS, *_MODELS)
        if before.part(key) is not None and now.part(key) is None
    ]
    if record.cells and baseline.cells and unsaid:
        reasons.append(f"other settings: this run does not say its {_some(unsaid)}")
    return reasons


def foreign_context(now: Context, baseline: Baseline) -> list[str]:
    """:func:`foreign`, of the parts of the context that both state."""
    reasons, before = [], baseline.context
    if device_class(now) != baseline.device_class:
        reasons.append(
            f"foreign device class: the baseline is of {baseline.device_class}, this run of "
            f"{device_class(now)}; give the baseline of {device_class(now)}"
        )
    reasons += _other_models(now, before)
    old, new = dict(_settings(before)), dict(_settings(now))
    other = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    if "budget" in other:  # then all the rest differs too
        other = ["budget"]
    if other:
        shown = [f"{name} {old[name]} -> {new[name]}" for name in other]
        reasons.append(f"other settings than the baseline's: {_some(shown, 3)}")
    return reasons


def _other_models(now: Context, before: Context) -> Iterator[str]:
    for key, name in _MODELS.items():
        mine: Model | None = getattr(now, key)
        there: Model | None = getattr(before, key)
        if mine and there and mine.sha256 != there.sha256:
            yield (
                f"other model: {name} of the baseline is {there.name} "
                f"({str(there.sha256)[:12]}), of this run {mine.name} ({str(mine.sha256)[:12]})"
            )


def _settings(context: Context) -> Iterator[tuple[str, str]]:
    """Names and values of all settings that two runs of one budget have in common."""
    for key in _SETTINGS:
        if context.part(key) is not None:
            yield from flattened(context.part(key), _MAY_DIFFER, key)


def changed_matrix(record: Record, baseline: Baseline) -> list[str]:
    """Configurations that changed their formats under one name."""
    now, before = record.matrix, baseline.matrix
    return [
        f"changed matrix: {name} was {before[name]} and is {now[name]}; make the baseline again"
        for name in sorted(now.keys() & before.keys())
        if now[name] != before[name]
    ]


def untrustworthy(record: Record) -> list[str]:
    """Why this run is no measurement, whatever it is compared with."""
    reasons = []
    if record.planted_fault:
        reasons.append(f"{record.planted_fault} was planted: this run is not a measurement")
    missing = record.missing
    if missing:
        reasons.append(f"incomplete: {len(missing)} cells were not measured: {_some(missing)}")
    if record.cells and not record.expected:
        reasons.append("incomplete: the run does not say which cells it set out to measure")
    reasons += _not_as_configured(record)
    for hypothesis in record.measured_hypotheses:
        limit = record.thresholds[hypothesis].limit
        highest = max(record.golden_floors(hypothesis), default=0.0)
        if highest >= limit:
            reasons.append(
                f"noise above the margin: {hypothesis} in FP32 differs by {highest:.2g} between "
                f"two batch shapes on this device, the limit is {limit:.2g}: look for TF32"
            )
    return reasons


def _not_as_configured(record: Record) -> Iterator[str]:
    """Components that were observed in another format than the matrix says."""
    for configuration, seen in record.context.observed_formats.items():
        asked = record.matrix.get(configuration, {})
        for component, fmt in seen.items():
            if fmt != asked.get(component, fmt):
                yield (
                    f"not as configured: the {component} of {configuration} ran in {fmt}, the "
                    f"matrix says {asked[component]}"
                )


def elsewhere(record: Record, baseline: Baseline) -> list[str]:
    """Cells that were measured at another operating point, or without saying in which formats."""
    reasons = []
    for cell in record.cells:
        known = baseline.cell(*cell.key)
        before, after = known.true_kl if known else None, cell.evidence.true_kl
        far = before and (not after or not 1 / _FARTHEST_KL < after / before < _FARTHEST_KL)
        if far and any(row.kl_exponent for row in DIRECTIONS[cell.hypothesis].values()):
            reasons.append(
                f"other operating point: {cell.name} at a true KL of {after}, was {before:.3g}"
            )
    seen, were = (x.context.observed_formats for x in (record, baseline))
    measured = {cell.configuration for cell in record.cells}
    gone = [
        f"{c} {x}" for c in sorted(measured) for x in were.get(c, {}) if x not in seen.get(c, {})
    ]
    if gone and len(record.cells) >= sum(map(len, baseline.cells.values())):
        reasons.append(f"formats that were not observed: {_some(gone)}")
    return reasons


def unmatched(record: Record, baseline: Baseline) -> list[str]:
    """Cells, metrics of a cell and functions that only one of the two has.

    A hypothesis that the baseline does not know at all is none of them: :func:`new_hypotheses`.
    """
    new = new_hypotheses(record, baseline)
    now = {cell.key: set(cell.metrics) for cell in record.cells if cell.hypothesis not in new}
    before = {
        (h, c): set(cell.metrics)
        for h, cells in baseline.cells.items()
        for c, cell in cells.items()
    }
    tested, known = _functions(record.conformance), _functions(baseline.conformance)
    missing = sorted({*_only_in(now, before), *(tested - known)})
    unused = sorted({*_only_in(before, now), *(known - tested)})
    reasons = []
    if missing:
        reasons.append(
            f"missing entries: the baseline does not know {_some(missing)}; make it again"
        )
    if unused:
        reasons.append(
            f"unused entries: the baseline has {_some(unused)}, which this run did not measure"
        )
    return reasons


def new_hypotheses(record: Record, baseline: Baseline) -> dict[str, int]:
    """Hypotheses of a baseline with cells that it has none of, with the number of this run's."""
    measured = Counter(cell.hypothesis for cell in record.cells if baseline.cells)
    return {h: count for h, count in measured.items() if not baseline.cells.get(h)}


def _functions(conformance: Conformance | None) -> set[str]:
    return {f"core {name}" for name in conformance.functions} if conformance else set()


def _only_in(
    these: Mapping[tuple[str, str], set[str]], others: Mapping[tuple[str, str], set[str]]
) -> Iterator[str]:
    """Names of cells that the others lack, and of gated metrics of cells that they have."""
    for key, metrics in these.items():
        place = " ".join(key)
        if key not in others:
            yield place
        else:
            yield from (f"{place} {m}" for m in metrics - others[key] if _must_be_there(key[0], m))


def _must_be_there(hypothesis: str, metric: str) -> bool:
    """Whether a cell without this metric lacks something; True for one that has no row any more."""
    row = DIRECTIONS.get(hypothesis, {}).get(metric)
    return row is None or bool(row.scale and row.absent is None)


def fewer(counts: Iterable[Count], context: Context) -> list[str]:
    """A sentence per metric that compared fewer elements than before, with its configurations.

    Args:
        context: of this run.
    """
    names_of: dict[str, list[str]] = {}
    for hypothesis, configuration, metric, before, after in counts:
        if not after or after < before - _chance(hypothesis, metric, context):
            short = f"{hypothesis} {metric} compared {after}, the baseline {before}"
            names_of.setdefault(short, []).append(configuration)
    return [f"fewer elements: {short}, in {_some(names, 3)}" for short, names in names_of.items()]


def _chance(hypothesis: str, metric: str, context: Context) -> float:
    """So many elements fewer can be explained by what was sampled.

    Counts are fixed by the budget, except where responses end when they like: there a count is a
    sum over N sequences of at most m each, so that two of them differ by a standard deviation of
    at most (m / 2) sqrt(2 N).
    """
    if context.trajectories is None:
        return 0.0
    settings, most = context.trajectories.settings, 0
    if HYPOTHESES[hypothesis].on_trajectories and HYPOTHESES[hypothesis].counted == "tokens":
        most = settings.max_new_tokens or 0
    elif metric in _PAIRS:
        most = (settings.samples_per_prompt or 1) - 1
    sequences = (settings.num_batches or 0) * (settings.batch_size or 0)
    sequences = sequences or (context.reward_groups.sequences if context.reward_groups else 0)
    return NormalDist().inv_cdf(1 - FALSE_ALARMS) * float(most) / 2 * math.sqrt(2 * sequences)


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
