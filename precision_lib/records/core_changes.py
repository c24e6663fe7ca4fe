"""The core under test against a baseline, function by function.

A check that fails now and passed before is a regression; one that failed before is not. A check
that is missing makes the comparison inconclusive.
"""

from dataclasses import dataclass, field
from typing import Any

from precision_lib.records.baseline import Baseline
from precision_lib.records.changes import Change


@dataclass
class CoreChanges:
    """What changed in the core.

    Attributes:
        worse, better: functions with checks that fail now and did not before, and the reverse.
        obstacles: what compared less than before.
        compared: number of functions.
    """

    worse: list[Change] = field(default_factory=list)
    better: list[Change] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    compared: int = 0


def core_changes(block: dict[str, Any], baseline: Baseline) -> CoreChanges:
    """Compare what the conformance checks of both found, function by function."""
    here, there = (b.get("conformance") or {} for b in (block, baseline))
    if not here or not there:
        return CoreChanges()
    if here["target"] != there["target"]:
        other = f"other core: the baseline is of {there['target']}, this run of {here['target']}"
        return CoreChanges(obstacles=[other])
    if here["profile"] != there["profile"]:
        other = (
            f"other examples: the baseline's profile is {there['profile']}, here {here['profile']}"
        )
        return CoreChanges(obstacles=[other])
    both = [name for name in here["functions"] if name in there["functions"]]
    found = CoreChanges(compared=len(both))
    for name in both:
        before, after = there["functions"][name], here["functions"][name]
        new = sorted(set(after["failed"]) - set(before["failed"]))
        gone = sorted(set(before["failed"]) - set(after["failed"]))
        if new:
            found.worse.append(_core_change(name, before, after, new))
        elif gone and after["tests"] >= before["tests"]:
            found.better.append(_core_change(name, before, after, gone))
        # Another seed or release of Hypothesis draws other inputs, not half as many.
        few = after["inputs"] < before["inputs"] / 2 and not after["failed"]
        if after["tests"] < before["tests"] or few or not (after["compared"] or after["failed"]):
            found.obstacles.append(
                f"fewer checks: core {name} ran {after['tests']} on {after['inputs']} inputs that "
                f"compared {after['compared']} elements, the baseline {before['tests']} on "
                f"{before['inputs']}"
            )
    return found


def _core_change(
    name: str, before: dict[str, Any], after: dict[str, Any], tests: list[str]
) -> Change:
    """A function's checks that changed their outcome: by its error where that is what changed."""
    old, new = (float(counts["worst_over_limit"]) for counts in (before, after))
    more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
    failed_before, failed_after = (
        float(len({*tests} & {*counts["failed"]})) for counts in (before, after)
    )
    bad, good = (new, old) if failed_after else (old, new)
    measured = bad > max(good, 1)
    return Change(
        where="core",
        configuration="",
        component=name,
        metric="worst_over_limit" if measured else "failed_checks",
        before=old if measured else failed_before,
        after=new if measured else failed_after,
        limit=1.0 if measured else failed_before,
        unit="times the limit" if measured else "checks",
        reason=f"what FP32 arithmetic may do: {tests[0]}{more}",
    )
