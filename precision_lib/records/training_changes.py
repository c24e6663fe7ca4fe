"""A PPO sweep against a baseline: runs that fail now, and gains that are lost now.

A run that no longer completes is a regression. A lost gain is one beyond both intervals.
"""

from dataclasses import dataclass, field
from typing import Any

from precision_lib.records.changes import Change
from precision_lib.records.directions import Direction
from precision_lib.records.margins import FALSE_ALARMS, is_beyond, margin

DAMAGE = "objective_gain_lost"
_LOST = Direction("difference")
COMPLETED = "completed"


@dataclass
class TrainingChanges:
    """What changed in a sweep: worse and better, what could not be compared, how much was."""

    worse: list[Change] = field(default_factory=list)
    better: list[Change] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    compared: int = 0


def training_summary(training: dict[str, Any]) -> dict[str, Any]:
    """What a baseline keeps of a sweep's record; empty where none was run."""
    evidence = training.get("evidence")
    if not evidence:
        return {}
    cells = evidence["cells"]
    # The intervals pool what configurations and seeds leave over, see sweep/blocks.py.
    clusters = (len(cells) - 1) * (len(evidence["seeds"]) - 1) + 1
    kept = {}
    for cell in cells:
        ended = list(cell["statuses"].values())
        kept[cell["configuration"]] = {
            "failed": sum(status != COMPLETED for status in ended),
            "runs": len(ended),
            "metrics": {
                name: metric | {"clusters": clusters}
                for name, metric in cell["metrics"].items()
                if name == DAMAGE
            },
        }
    settings = {k: v for k, v in training["settings"].items() if k != "seed"}
    return {"settings": settings, "max_steps": training["max_steps"], "cells": kept}


def training_changes(training: dict[str, Any], baseline: dict[str, Any]) -> TrainingChanges:
    """Compare a sweep's record with the ``training`` of a baseline."""
    here, there = training_summary(training), baseline.get("training") or {}
    if not here and not there:
        return TrainingChanges()
    missing = [name for name, part in (("run", here), ("baseline", there)) if not part]
    if missing:
        return TrainingChanges(obstacles=[f"the {missing[0]} holds no sweep, the other does"])
    for name in ("settings", "max_steps"):
        if here[name] != there[name]:
            other = f"other sweep: its {name} are {here[name]}, the baseline's {there[name]}"
            return TrainingChanges(obstacles=[other])
    found = TrainingChanges()
    if not training["complete"]:
        found.obstacles.append("incomplete: runs of the sweep did not end")
    if here["cells"].keys() != there["cells"].keys():
        apart = ", ".join(sorted(here["cells"].keys() ^ there["cells"].keys()))
        found.obstacles.append(f"other sweep: only one of the two trained {apart}")
    for name in here["cells"].keys() & there["cells"].keys():
        _compare(name, there["cells"][name], here["cells"][name], found, len(here["cells"]))
    return found


def _compare(
    name: str, before: dict[str, Any], after: dict[str, Any], found: TrainingChanges, cells: int
) -> None:
    """Put what changed in one configuration into ``found``."""
    found.compared += 1
    if after["runs"] < before["runs"]:
        found.obstacles.append(
            f"fewer elements: {after['runs']} runs of {name}, the baseline has {before['runs']}"
        )
    old, new = before["failed"] / before["runs"], after["failed"] / after["runs"]
    if new != old:
        change = _change(name, "failed_runs", old, new, old, "share of runs", "runs that end")
        (found.worse if new > old else found.better).append(change)
    if DAMAGE not in before["metrics"] or DAMAGE not in after["metrics"]:
        return
    found.compared += 1
    limits = margin(before["metrics"][DAMAGE], after["metrics"][DAMAGE], _LOST, 2 * cells)
    unit = after["metrics"][DAMAGE]["unit"]
    reason = f"both intervals at {FALSE_ALARMS:.1%} per sweep"
    figures = (DAMAGE, limits.before, limits.after)
    if is_beyond(limits.after, limits.limit, 1):
        found.worse.append(_change(name, *figures, limits.limit, unit, reason))
    elif is_beyond(limits.after, limits.improved, -1):
        found.better.append(_change(name, *figures, limits.improved, unit, reason))


def _change(
    name: str, metric: str, before: float, after: float, limit: float, unit: str, reason: str
) -> Change:
    return Change("training", name, "policy", metric, before, after, limit, unit, reason)
