"""A comparison of weights on one screen."""

from collections.abc import Iterable

from precision_lib.reporting.styles import Line
from precision_lib.weights.findings import KINDS, Finding, Outcome

#: Findings of one kind that are listed by name.
SHOWN = 8


def weight_lines(outcome: Outcome) -> list[Line]:
    """Verdict, what was equal and how, then findings by kind, and what nobody can say."""
    colours = {"equal": "green", "different": "red", "cannot say": "yellow"}
    total = f"{outcome.compared} tensors, {outcome.elements:,} elements"
    lines: list[Line] = [(f"weights: {outcome.verdict}, {total}", colours[outcome.verdict])]
    lines += [(f"equal {way}: {count} tensors", "") for way, count in outcome.equal.items()]
    for kind, meaning in KINDS.items():
        findings = [finding for finding in outcome.findings if finding.kind == kind]
        if findings:
            lines.append((f"{kind}: {_count(findings)}, {meaning}", "red"))
            lines += [(f"  {_sentence(finding)}", "") for finding in findings[:SHOWN]]
            lines += _more(len(findings), "in --json FILE")
    lines += _unread(outcome)
    lines += [(f"note: {note}", "") for note in outcome.notes]
    if outcome.ignored:
        lines.append((f"ignored, one side may have it alone: {_some(outcome.ignored)}", ""))
    lines += _moved(outcome)
    return lines


def _count(findings: list[Finding]) -> str:
    return "1 tensor" if len(findings) == 1 else f"{len(findings)} tensors"


def _sentence(finding: Finding) -> str:
    doubt = "" if finding.exact else " (from statistics)"
    return f"{finding.tensor}: {finding.detail}{doubt}"


def _more(count: int, where: str) -> list[Line]:
    return [(f"  and {count - SHOWN} more {where}", "")] if count > SHOWN else []


def _unread(outcome: Outcome) -> list[Line]:
    entries = list(outcome.unread.items())
    if not entries:
        return []
    lines: list[Line] = [(f"cannot say: {len(entries)} tensors", "yellow")]
    lines += [(f"  {name}: {reason}", "") for name, reason in entries[:SHOWN]]
    return lines + _more(len(entries), "in --json FILE")


def _moved(outcome: Outcome) -> list[Line]:
    """A line for each step of the series, the last ones where there are many."""
    lines: list[Line] = []
    for moved in outcome.moved[-SHOWN:]:
        shares = sorted(moved.shares.values())
        if shares:
            middle = shares[len(shares) // 2]
            words = f"changed 16-bit codes, {moved.since} to {moved.to}: median {middle:.2%}"
            ends = f"from {shares[0]:.2%} to {shares[-1]:.2%}"
            lines.append((f"{words} of a tensor, {ends}", ""))
    return lines


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
