"""What the gate says, for a terminal and for a pull request.

Verdict, number of comparisons and every regression stand at the end, and in one screen of Markdown.
"""

from collections.abc import Sequence

from precision_lib.record.changes import Change, Gate, grouped
from precision_lib.record.record import Record
from precision_lib.reporting.damage import HEADINGS, damage_notes, damage_rows, damage_title
from precision_lib.reporting.markdown import table
from precision_lib.reporting.styles import Line
from precision_lib.reporting.table import matrix_table

_STYLE = {"no regression": "green", "regression": "red", "inconclusive": "yellow"}
#: So many lines of a kind are shown; the record has all.
_MOST = 10


def gate_lines(record: Record) -> list[Line]:
    """Lines of the gate's verdict; none where no baseline was given."""
    gate = record.gate
    if gate is None:
        return []
    heading = f"gate: {gate.verdict}, {gate.compared} comparisons with {gate.baseline}"
    lines: list[Line] = [(heading, _STYLE[gate.verdict])]
    lines += [(f"REGRESSION {text}", "red") for text in _messages(record.regressions)]
    lines += [(f"inconclusive: {text}", "yellow") for text in _first(gate.obstacles)]
    better = _messages(gate.improvements)
    lines += [(f"improved {text}", "green") for text in better[:_MOST]]
    if len(better) > _MOST:
        lines.append((f"and {len(better) - _MOST} more improvements", "green"))
    if better:
        lines.append(("--update-baseline holds on to what has improved", ""))
    if gate.blind:
        shown = ", ".join(gate.blind[:3]) + (", ..." if len(gate.blind) > 3 else "")
        text = f"{len(gate.blind)} metrics scatter too much to ever turn red: {shown}"
        lines.append((text, ""))
    for text in gate.new:
        lines.append((f"new: the baseline does not know {text}; make it again to gate them", ""))
    worst = gate.worst
    if gate.verdict == "no regression" and worst.share_of_limit > 0:
        share = f"{worst.share_of_limit:.0%}"
        lines.append((f"nearest to its limit: {worst.metric}, at {share} of what it may", ""))
    return lines


def _messages(changes: Sequence[Change]) -> list[str]:
    """One line per metric; the same one in other configurations is counted."""
    return [c.message + _others(count) for c, count in grouped(changes)]


def _first(sentences: Sequence[str]) -> list[str]:
    """A screen of them: fewer elements than before can be said of every metric of a run."""
    more = len(sentences) - _MOST
    return [*sentences[:_MOST], *([f"and {more} more, see the record"] if more > 0 else [])]


def _others(count: int) -> str:
    if count == 1:
        return ""
    return f" (and in {count - 1} more configuration{'s' if count > 2 else ''})"


def pull_request(record: Record) -> str:
    """One screen of Markdown: verdict, regressions, what could not be compared, the matrix."""
    gate = record.gate
    verdict = gate.verdict if gate else "no baseline was given"
    parts = [f"### Precision: {verdict}", _counts(record, gate)]
    if record.planted_fault:
        parts.append(f"**{record.planted_fault} was planted: nothing here is a measurement.**")
    if record.regressions:
        parts.append(_changes(record.regressions))
    if gate is not None:
        parts.append("\n".join(f"- inconclusive: {text}" for text in _first(gate.obstacles)))
    if gate is not None and gate.improvements:
        parts.append(_folded("improvements", _changes(gate.improvements)))
    lines = "\n".join(text for text, _ in matrix_table(record))
    if lines:
        parts.append(_folded("damage and verdict of every cell", f"```\n{lines}\n```"))
    if damage := record.pipeline_damage:
        rows = table(HEADINGS, damage_rows(damage))
        text = f"{damage_title(damage)}.\n\n{rows}\n\n{' '.join(damage_notes(damage))}"
        parts.append(_folded("a whole PPO step", text))
    return "\n\n".join(part for part in parts if part) + "\n"


def _counts(record: Record, gate: Gate | None) -> str:
    text = f"{len(record.cells)} of {len(record.expected)} cells measured"
    if gate is not None:
        text += f", {gate.compared} comparisons with `{gate.baseline}`"
    return f"{text}, commit {record.context.commit_digits(10)}."


def _changes(changes: Sequence[Change]) -> str:
    groups = grouped(changes)
    rows = [
        (
            f"{c.where} {c.configuration}{_others(count)}".strip(),
            c.component,
            f"`{c.metric}`",
            *(_number(value) for value in (c.before, c.after, c.limit)),
            c.unit,
        )
        for c, count in groups[:_MOST]
    ]
    headings = ("where", "component", "metric", "before", "after", "limit", "unit")
    more = f"\n\nand {len(groups) - _MOST} more, see the record" if len(groups) > _MOST else ""
    return table(headings, rows) + more


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
