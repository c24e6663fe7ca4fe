"""``python -m tools.frameworks``: conformance records as the tables of docs/frameworks.md.

The hazard. A table that accuses somebody must be what was measured, of the release that was
measured, and must not count another definition as an error. So counts come from the record, the
kind of every failure from the list of known failures, and a failure that the list does not explain
is shown as unexplained.
"""

import argparse
import importlib
import math
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from precision_lib.exit_codes import OK, USAGE
from precision_lib.record.conformance import Conformance
from precision_lib.record.files import RecordError, load_record
from precision_lib.record.record import Record
from precision_lib.reporting.consequences import sentence
from precision_lib.reporting.markdown import table
from precision_lib.targets.known_failures import (
    KINDS,
    KnownFailures,
    KnownFailuresError,
    read_known_failures,
    shipped,
)
from precision_lib.targets.objectives import OPTIONS, base
from tools.documents import MarkerError, write_between

FORMATS = ("fp32", "bf16", "fp16")
#: Why checks of severity ``range`` fail, and what that means.
RANGE = (
    "where the range of a format ends: logits and rewards near the largest number or subnormal, "
    "150,000 logits that are all alike; not on the list, since they fail no run",
    "none in ordinary training",
)


class FrameworksError(ValueError):
    """The tables cannot be made; the message says from what."""


def frameworks(records: Sequence[Record], defects: Path) -> str:
    """All tables.

    Args:
        records: of runs on shipped adapters.
        defects: the TOML file of defects, each with its reproducer.

    Raises:
        FrameworksError: when a record is not of a framework, or the file of defects is not one.
    """
    parts = ["## Defects", _defects(defects)]
    for record in records:
        found = record.conformance
        path = shipped(found.target) if found else None
        if found is None or path is None:
            target = found.target if found else None
            raise FrameworksError(f"no record of a run on a framework: {target!r}")
        try:
            parts += _framework(record, found, read_known_failures(path))
        except KnownFailuresError as error:
            raise FrameworksError(str(error)) from None
    return "\n\n".join(parts)


def _defects(path: Path) -> str:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["defect"]
        rows = [
            [
                f"{number}. {e['framework']}: `{e['function']}`. {e['input']}",
                f"{e['got']}; **want** {e['want']}",
                e["consequence"] + _reported(e.get("link", "")),
                e["callers"],
                f"[{e['reproducer']}](../examples/reproducers/{e['reproducer']}.py)",
            ]
            for number, e in enumerate(entries, 1)
        ]
    except (OSError, ValueError, KeyError) as error:
        raise FrameworksError(f"{path}: {error!r}") from None
    heads = ("what, and on which input", "got", "consequence", "what callers pass", "reproducer")
    return table(heads, rows, numbers=False)


def _reported(link: str) -> str:
    """Where the same fault was reported, with the project that it was reported to."""
    where = re.sub(r"https://github\.com/([^/]+/[^/]+)/\w+/(\d+)", r"\1#\2", link)
    return f" (the same in [{where}]({link}))" if link else ""


def _framework(record: Record, found: Conformance, known: KnownFailures) -> list[str]:
    name, version = found.target, found.version
    adapter = importlib.import_module(f"precision_lib.targets.adapters.{name}").FRAMEWORK
    kinds = {test: entry.kind for test, entry in known.by_test().items()}
    where = f"torch {record.context.versions['torch']}, {record.context.device_name}"
    listed = "" if known.version == version else f", list of failures of {known.version}"
    absent = "; ".join(f"`{name}` ({why})" for name, why in adapter.not_offered.items())
    parts = [
        f"## {name} {version}",
        f"{where}{listed}. Not offered: {absent}.",
        _counts(found, adapter.offered, kinds),
        _consequences(found),
        _causes(found, known),
    ]
    return [part for part in parts if part]


def _counts(found: Conformance, offered: Mapping[str, str], kinds: Mapping[str, str]) -> str:
    """One row a function: what is called, checks passed, failures by kind, worst by format."""
    shown = [kind for kind in KINDS if kind != "unexplained" or _unexplained(found, kinds)]
    rows = []
    for function, counts in found.functions.items():
        by_kind = Counter(kinds.get(test, "unexplained") for test in counts.failed)
        by_kind["range"] += len(counts.range)
        passed = counts.tests - len(counts.failed) - len(counts.range)
        called = offered[function] if function in offered else f"the same, {_option(function)}"
        rows.append(
            [
                f"`{base(function)}`: {called}",
                f"{passed} of {counts.tests}",
                *(str(by_kind[kind]) for kind in shown),
                *(_worst(counts.by_format.get(fmt, 0.0)) for fmt in FORMATS),
            ]
        )
    heads = ("function", "passed", *shown, *(f"error/limit {fmt}" for fmt in FORMATS))
    return table(heads, rows)


def _option(name: str) -> str:
    return f"with `{OPTIONS[name][1]}`"


def _unexplained(found: Conformance, kinds: Mapping[str, str]) -> bool:
    return any(kinds.get(test, "unexplained") == "unexplained" for test in _counted(found))


def _counted(found: Conformance) -> list[str]:
    """Failed checks that fail a run; those of severity ``range`` do not."""
    return [test for counts in found.functions.values() for test in counts.failed]


def _worst(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) and value < 1e300 else "not finite"


def _consequences(found: Conformance) -> str:
    rows = [
        [f"`{function}`", *(sentence(formats.get(fmt, {})) for fmt in ("fp32", "bf16"))]
        for function, formats in found.consequences.items()
    ]
    heads = ("on an ordinary batch", "FP32 input", "bf16 input")
    return table(heads, rows, numbers=False) if rows else ""


def _causes(found: Conformance, known: KnownFailures) -> str:
    """Why checks fail, cause by cause; one that did not fail in this run is not counted."""
    failed = set(_counted(found))
    counted = Counter(
        (e.kind, e.reason, e.consequence, e.link) for e in known.known if e.test in failed
    )
    rows = [
        [kind, reason + _reported(link), consequence, str(count)]
        for (kind, reason, consequence, link), count in counted.items()
    ]
    news = len(failed - {entry.test for entry in known.known})
    rows += [["unexplained", "not on the list", "not known", str(news)]] if news else []
    beyond = sum(len(counts.range) for counts in found.functions.values())
    rows += [["range", *RANGE, str(beyond)]] if beyond else []
    heads = ("kind", "why checks fail", "what it means in training", "checks")
    return table(heads, rows, numbers=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables or put them between a document's markers."""
    options = _parser().parse_args(arguments)
    try:
        records = [load_record(path) for path in options.records]
        text = frameworks(records, options.defects)
        if options.into is not None:
            write_between(options.into, "frameworks", text)
    except (FrameworksError, MarkerError, RecordError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return USAGE
    if options.into is None:
        print(text)  # noqa: T201
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.frameworks")
    parser.add_argument(
        "records",
        type=Path,
        nargs="+",
        metavar="CONFORMANCE.json",
        help="what pytest --target=trl and the like wrote",
    )
    parser.add_argument(
        "--defects",
        type=Path,
        default=Path("docs/records/frameworks/defects.toml"),
        help="the defects with their reproducers (default: %(default)s)",
    )
    parser.add_argument(
        "--into", type=Path, metavar="FILE.md", help="replace what stands between its markers"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
