"""What changed between two records: context, verdicts, metrics beyond noise.

A metric is named where it passes the limit that the gate would draw.
"""

from precision_lib.compare.baseline import summary_of
from precision_lib.compare.gate import compare
from precision_lib.record.changes import Change, grouped
from precision_lib.record.context import Context, flattened
from precision_lib.record.record import Record
from precision_lib.reporting.styles import Line

#: Parts of a context that are measured anew each time and say nothing about a difference.
_LEFT_OUT = ("shards", "observed_formats")


def comparison_lines(before: Record, after: Record) -> list[Line]:
    """Lines about two records, the earlier one first; at the end, what was left out.

    Raises:
        BaselineError: the earlier one holds no measurement.
    """
    comparison = compare(after, summary_of(before))
    lines: list[Line] = [("context", "bold")]
    lines += [(text, "") for text in _context(before.context, after.context)]
    lines += [("", ""), ("verdicts", "bold"), *_or_same(_verdicts(before, after))]
    heading = f"metrics beyond both intervals and the noise floor, of {comparison.compared}"
    lines += [("", ""), (heading, "bold")]
    changes = [(f"worse: {_message(*c)}", "red") for c in grouped(comparison.worse)]
    changes += [(f"better: {_message(*c)}", "green") for c in grouped(comparison.better)]
    lines += _or_same(changes)
    return [*lines, *((text, "yellow") for text in comparison.inconclusive)]


def _or_same(lines: list[Line]) -> list[Line]:
    return lines or [("the same in both", "")]


def _message(change: Change, count: int) -> str:
    return change.message + (f" (and in {count - 1} more)" if count > 1 else "")


def _context(before: Context, after: Context) -> list[str]:
    old, new = (dict(flattened(context, _LEFT_OUT)) for context in (before, after))
    differences = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            differences.append(f"{name}: {old.get(name, 'none')} -> {new.get(name, 'none')}")
    return differences or ["the same in both"]


def _verdicts(before: Record, after: Record) -> list[Line]:
    old, new = (
        r.verdicts | {(h.hypothesis, "as a whole"): h.verdict for h in r.hypotheses}
        for r in (before, after)
    )
    return [
        (f"{h} {c}: {old[h, c]} -> {verdict}", "yellow")
        for (h, c), verdict in new.items()
        if old.get((h, c), verdict) != verdict
    ]
