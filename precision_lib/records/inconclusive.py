"""What keeps a run from being compared with a baseline, each as one sentence.

The hazard. A comparison of two models, two devices or two budgets gives a verdict like any other,
and a run that measured half of it finds no regression. Each of these is named, and none is green.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from statistics import NormalDist
from typing import Any

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.records.baseline import Baseline, device_class
from precision_lib.records.directions import DIRECTIONS
from precision_lib.records.margins import FALSE_ALARMS

#: Parts of the context that have to agree.
_SETTINGS = ("budget", "trajectories", *(h.context for h in HYPOTHESES.values() if h.context))
_MODELS = {"checkpoint": "the checkpoint", "reward_model": "the reward model"}
#: Of the settings, what depends on the seed and on the last bit, or is compared by itself.
_MAY_DIFFER = ("seed", "shards", "models")
#: Metrics whose number of elements depends on what was sampled, with the most that a sequence adds.
_PAIRS = ("reward_tie_frac", "reward_kendall_tau")
#: True KLs further apart than this factor are two operating points; a seed misses by some 10 %.
_FARTHEST_KL = 2.0


def foreign(block: dict[str, Any], baseline: Baseline) -> list[str]:
    """Why the two measurements are not of the same thing; empty where they are.

    Device class, checkpoints, settings, core under test.
    """
    here, there = block["context"], baseline["context"]
    if "device" not in here:
        return ["the run measured nothing: it names no device"]
    found = []
    if device_class(here) != baseline["device_class"]:
        found.append(
            f"foreign device class: the baseline is of {baseline['device_class']}, this run of "
            f"{device_class(here)}; give the baseline of {device_class(here)}"
        )
    found += _other_models(here, there)
    old, new = dict(_settings(there)), dict(_settings(here))
    other = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    if "budget" in other:  # then all the rest differs too
        other = ["budget"]
    unsaid = [key for key in (*_SETTINGS, *_MODELS) if key in there and key not in here]
    if block["cells"] and baseline["cells"] and unsaid:
        found.append(f"other settings: this run does not say its {_some(unsaid)}")
    if other:
        shown = [f"{name} {old[name]} -> {new[name]}" for name in other]
        found.append(f"other settings than the baseline's: {_some(shown, 3)}")
    return found


def _other_models(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    return [
        f"other model: {name} of the baseline is {there[key]['name']} "
        f"({there[key]['sha256'][:12]}), of this run {here[key]['name']} "
        f"({here[key]['sha256'][:12]})"
        for key, name in _MODELS.items()
        if key in here and key in there and here[key]["sha256"] != there[key]["sha256"]
    ]


def _settings(context: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of all settings that two runs of one budget have in common."""
    for key in _SETTINGS:
        if key in context:
            yield from _flat(key, context[key])


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict):
        yield name, str(list(value) if isinstance(value, tuple) else value)
        return
    for key, inside in value.items():
        if key not in _MAY_DIFFER:
            yield from _flat(f"{name}.{key}", inside)


def changed_matrix(block: dict[str, Any], baseline: Baseline) -> list[str]:
    """Configurations that changed their formats under one name."""
    here, there = block["matrix"], baseline["matrix"]
    return [
        f"changed matrix: {name} was {there[name]} and is {here[name]}; make the baseline again"
        for name in sorted(here.keys() & there.keys())
        if here[name] != there[name]
    ]


def untrustworthy(block: dict[str, Any]) -> list[str]:
    """Why this run is no measurement, whatever it is compared with."""
    found = []
    if block.get("planted_fault"):
        found.append(f"{block['planted_fault']} was planted: this run is not a measurement")
    done = {(c["hypothesis"], c["configuration"]) for c in block["cells"]}
    missing = [f"{h} {c}" for h, c in block.get("expected", []) if (h, c) not in done]
    if missing:
        found.append(f"incomplete: {len(missing)} cells were not measured: {_some(missing)}")
    if block["cells"] and not block.get("expected"):
        found.append("incomplete: the run does not say which cells it set out to measure")
    found += _not_as_configured(block)
    for hypothesis, floors in block.get("noise_floors", {}).items():
        limit = block["thresholds"][hypothesis]["limit"]
        highest = max((floor["value"] for floor in floors.values()), default=0.0)
        if highest >= limit:
            found.append(
                f"noise above the margin: {hypothesis} in FP32 differs by {highest:.2g} between "
                f"two batch shapes on this device, the limit is {limit:.2g}: look for TF32"
            )
    return found


def _not_as_configured(block: dict[str, Any]) -> Iterator[str]:
    """Components that were observed in another format than the matrix says."""
    for configuration, seen in block["context"].get("observed_formats", {}).items():
        asked = block["matrix"].get(configuration, {})
        for component, fmt in seen.items():
            if fmt != asked.get(component, fmt):
                yield (
                    f"not as configured: the {component} of {configuration} ran in {fmt}, the "
                    f"matrix says {asked[component]}"
                )


def elsewhere(block: dict[str, Any], baseline: Baseline) -> list[str]:
    """Cells that were measured at another operating point, or without saying in which formats."""
    found = []
    for cell in block["cells"]:
        place = f"{cell['hypothesis']} {cell['configuration']}"
        known = baseline["cells"].get(cell["hypothesis"], {}).get(cell["configuration"], {})
        before, after = known.get("true_kl"), cell["evidence"].get("true_kl")
        far = before and (not after or not 1 / _FARTHEST_KL < after / before < _FARTHEST_KL)
        if far and any(row.kl_exponent for row in DIRECTIONS[cell["hypothesis"]].values()):
            found.append(
                f"other operating point: {place} at a true KL of {after}, was {before:.3g}"
            )
    seen, were = (r["context"].get("observed_formats", {}) for r in (block, baseline))
    measured = {c["configuration"] for c in block["cells"]}
    gone = [
        f"{c} {x}" for c in sorted(measured) for x in were.get(c, {}) if x not in seen.get(c, {})
    ]
    if gone and len(block["cells"]) >= sum(map(len, baseline["cells"].values())):
        found.append(f"formats that were not observed: {_some(gone)}")
    return found


def unmatched(block: dict[str, Any], baseline: Baseline) -> list[str]:
    """Cells, metrics of a cell and functions that only one of the two has.

    A hypothesis that the baseline does not know at all is none of them: :func:`new_hypotheses`.
    """
    new = new_hypotheses(block, baseline)
    here = {
        (c["hypothesis"], c["configuration"]): set(c["metrics"])
        for c in block["cells"]
        if c["hypothesis"] not in new
    }
    there = {
        (h, c): set(of["metrics"])
        for h, found in baseline["cells"].items()
        for c, of in found.items()
    }
    tested, known = (
        {f"core {name}" for name in (b.get("conformance") or {}).get("functions", {})}
        for b in (block, baseline)
    )
    missing = sorted({*_only_in(here, there), *(tested - known)})
    unused = sorted({*_only_in(there, here), *(known - tested)})
    found = []
    if missing:
        found.append(f"missing entries: the baseline does not know {_some(missing)}; make it again")
    if unused:
        found.append(
            f"unused entries: the baseline has {_some(unused)}, which this run did not measure"
        )
    return found


def new_hypotheses(block: dict[str, Any], baseline: Baseline) -> dict[str, int]:
    """Hypotheses of a baseline with cells that it has none of, with the number of this run's."""
    measured = Counter(c["hypothesis"] for c in block["cells"] if baseline["cells"])
    return {h: count for h, count in measured.items() if not baseline["cells"].get(h)}


def _only_in(
    these: dict[tuple[str, str], set[str]], others: dict[tuple[str, str], set[str]]
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


def fewer(counts: Iterable[tuple[str, str, str, int, int]], context: dict[str, Any]) -> list[str]:
    """A sentence per metric that compared fewer elements than before, with its configurations.

    Args:
        counts: hypothesis, configuration, metric, elements of the baseline, elements of this run.
        context: of this run.
    """
    found: dict[str, list[str]] = {}
    for hypothesis, configuration, metric, before, after in counts:
        if not after or after < before - _chance(hypothesis, metric, context):
            short = f"{hypothesis} {metric} compared {after}, the baseline {before}"
            found.setdefault(short, []).append(configuration)
    return [f"fewer elements: {short}, in {_some(names, 3)}" for short, names in found.items()]


def _chance(hypothesis: str, metric: str, context: dict[str, Any]) -> float:
    """So many elements fewer can be explained by what was sampled.

    Counts are fixed by the budget, except where responses end when they like: there a count is a
    sum over N sequences of at most m each, so that two of them differ by a standard deviation of
    at most (m / 2) sqrt(2 N).
    """
    settings = context.get("trajectories", {}).get("settings", {})
    most = 0
    if HYPOTHESES[hypothesis].on_trajectories and HYPOTHESES[hypothesis].counted == "tokens":
        most = settings.get("max_new_tokens", 0)
    elif metric in _PAIRS:
        most = settings.get("samples_per_prompt", 1) - 1
    sequences = settings.get("num_batches", 0) * settings.get("batch_size", 0)
    sequences = sequences or context.get("reward_groups", {}).get("sequences", 0)
    return NormalDist().inv_cdf(1 - FALSE_ALARMS) * float(most) / 2 * math.sqrt(2 * sequences)


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
