"""What changed between two records: context, verdicts, metrics beyond noise.

A metric is named where it passes the limit that the gate would draw.
"""

from collections.abc import Iterator
from typing import Any

from precision_lib.records.baseline import summary_of
from precision_lib.records.changes import grouped
from precision_lib.records.gate import compare
from precision_lib.reporting.styles import Line

#: Parts of a context that are measured anew each time and say nothing about a difference.
_LEFT_OUT = ("shards", "observed_formats")


def comparison_lines(before: dict[str, Any], after: dict[str, Any]) -> list[Line]:
    """Lines about two ``precision`` blocks, the earlier one first; at the end, what was left out.

    Raises:
        BaselineError: the earlier one holds no measurement.
    """
    baseline = summary_of(before)
    found = compare(after, baseline)
    worse = [c.as_json() for c in found.regressions]
    better = [c.as_json() for c in found.improvements]
    lines: list[Line] = [("context", "bold")]
    lines += [(text, "") for text in _context(before["context"], after["context"])]
    lines += [("", ""), ("verdicts", "bold"), *_or_same(_verdicts(before, after))]
    heading = f"metrics beyond both intervals and the noise floor, of {found.compared}"
    lines += [("", ""), (heading, "bold")]
    shown = [(f"worse: {_message(c, n)}", "red") for c, n in grouped(worse)]
    shown += [(f"better: {_message(c, n)}", "green") for c, n in grouped(better)]
    lines += _or_same(shown)
    return [*lines, *((text, "yellow") for text in found.obstacles)]


def _or_same(lines: list[Line]) -> list[Line]:
    return lines or [("the same in both", "")]


def _message(change: dict[str, Any], count: int) -> str:
    return str(change["message"]) + (f" (and in {count - 1} more)" if count > 1 else "")


def _context(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = dict(_flat(before)), dict(_flat(after))
    found = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            found.append(f"{name}: {old.get(name, 'none')} -> {new.get(name, 'none')}")
    return found or ["the same in both"]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inside in value.items():
            if key not in _LEFT_OUT:
                yield from _flat(inside, f"{name}.{key}" if name else key)
    else:
        yield name, str(value)


def _verdicts(before: dict[str, Any], after: dict[str, Any]) -> list[Line]:
    old = {(c["hypothesis"], c["configuration"]): c["verdict"] for c in before["cells"]}
    old |= {(h["hypothesis"], "as a whole"): h["verdict"] for h in before["hypotheses"]}
    new = {(c["hypothesis"], c["configuration"]): c["verdict"] for c in after["cells"]}
    new |= {(h["hypothesis"], "as a whole"): h["verdict"] for h in after["hypotheses"]}
    return [
        (f"{h} {c}: {old[h, c]} -> {verdict}", "yellow")
        for (h, c), verdict in new.items()
        if old.get((h, c), verdict) != verdict
    ]
