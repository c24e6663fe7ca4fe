"""A list of known failures made again from what a run found.

It holds exactly what failed: repaired checks leave it, reasons stay. A new failure gets the first
cause that says in ``covers`` that it is one of its own, or comes in as unexplained. What is of
severity ``range`` fails no run and is not listed, unless the run was strict.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from precision_lib.targets.known_failures import Known, KnownFailures, KnownFailuresError

#: An input that is longer than this is drawn again and not kept.
LONGEST_INPUT = 400
UNEXPLAINED = Known("", "unexplained", "not looked at yet", "not known", "", "")


def refreshed(old: KnownFailures, conformance: Mapping[str, Any]) -> KnownFailures:
    """The list of what failed in a record.

    Args:
        old: where reasons come from; may be empty.
        conformance: the record's ``precision.conformance``, without fields at their default.

    Returns:
        Causes in their old order, then what is unexplained; checks in the order of the record. A
        check that the record did not run keeps its entry, unless its function is gone.

    Raises:
        KnownFailuresError: when the list is of another core.
    """
    if old.target not in ("", conformance["target"]):
        raise KnownFailuresError(
            f"the list is of {old.target!r}, the record of {conformance['target']!r}: the reasons "
            "of one core do not excuse another"
        )
    ran = {name for counts in conformance["functions"].values() for name in counts["ran"]}
    gone = conformance.get("not_offered", ())
    entries = old.by_test()
    failures = [
        entry
        for entry in old.known
        if entry.test not in ran and entry.test.partition("[")[2].partition("-")[0] not in gone
    ]
    for name, failure in conformance.get("failures", {}).items():
        if failure.get("severity") == "range" and not conformance.get("strict"):
            continue
        case = failure["input"] if len(failure["input"]) <= LONGEST_INPUT else ""
        entry = entries.get(name, UNEXPLAINED)
        if entry.kind == "unexplained":
            entry = _covering(old, name, failure["what"])
        failures.append(replace(entry, test=name, input=case))
    order = list(dict.fromkeys(_cause(entry) for entry in (*old.known, *failures)))
    failures.sort(key=lambda entry: order.index(_cause(entry)))
    return KnownFailures(conformance["target"], conformance.get("version", ""), tuple(failures))


def _covering(old: KnownFailures, name: str, what: Iterable[str]) -> Known:
    """An entry of the first cause that covers a new failure."""
    text = "\n".join([name, *what])
    for entry in old.known:
        if any(re.search(pattern, text) for pattern in entry.covers):
            return entry
    return UNEXPLAINED


def _cause(entry: Known) -> tuple[str, str, str, str, tuple[str, ...]]:
    return entry.kind, entry.reason, entry.consequence, entry.link, entry.covers


def as_toml(found: KnownFailures) -> str:
    """The list as the text that :func:`read_known_failures` reads."""
    lines = [f"target = {_quoted(found.target)}", f"version = {_quoted(found.version)}"]
    before = None
    for entry in found.known:
        if _cause(entry) != before:
            before = _cause(entry)
            *words, covers = before
            fields = zip(("kind", "reason", "consequence", "link"), words, strict=True)
            lines += ["", "[[cause]]"]
            lines += [f"{k} = {_quoted(v)}" for k, v in fields if v or k != "link"]
            lines += [f"covers = [{', '.join(map(_quoted, covers))}]"] if covers else []
            lines += ["", "[cause.tests]"]
        lines.append(f"{_quoted(entry.test)} = {_quoted(entry.input)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
