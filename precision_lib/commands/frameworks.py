"""``known-failures`` and ``frameworks``: what conformance records say of somebody's core.

The hazard. A list of failures or a table of findings that is kept by hand outlives the run it came
from, so each is written from records alone.
"""

import argparse
from pathlib import Path
from typing import Any

from precision_lib.commands import OK, UsageError


def add_known_failures(commands: Any) -> None:
    known = commands.add_parser(
        "known-failures", help="the list of failures of a target, from the record of a run"
    )
    known.add_argument(
        "record", type=Path, metavar="CONFORMANCE.json", help="what pytest --target wrote"
    )
    known.add_argument(
        "--into",
        type=Path,
        metavar="FILE.toml",
        help="write it there; reasons that stand there already are kept (default: print)",
    )
    known.set_defaults(run=_known_failures, kept="the list is as it was")


def _known_failures(options: argparse.Namespace) -> int:
    from precision_lib.jsonio import write_text
    from precision_lib.records.record import RecordError, load_record
    from precision_lib.targets.known_failures import (
        KnownFailures,
        KnownFailuresError,
        read_known_failures,
    )
    from precision_lib.targets.known_failures.refreshed import as_toml, refreshed

    try:
        conformance = load_record(options.record)["precision"].get("conformance")
        if not conformance:
            raise UsageError(f"{options.record} is not the record of a run with --target")
        into = options.into
        old = read_known_failures(into) if into and into.exists() else KnownFailures()
        found = refreshed(old, conformance)
        if into is not None:
            write_text(into, as_toml(found))
    except (KnownFailuresError, RecordError, OSError) as error:
        raise UsageError(str(error)) from None
    news = sum(entry.kind == "unexplained" for entry in found.known)
    gone = len(set(old.by_test()) - set(found.by_test()))
    said = f"{len(found.known)} known failures, {news} unexplained, {gone} left the list"
    print(said if into is not None else as_toml(found), end="\n" if into else "")  # noqa: T201
    return OK


def add_frameworks(commands: Any) -> None:
    frameworks = commands.add_parser(
        "frameworks", help="what TRL, verl, OpenRLHF and torchtune lose, as tables"
    )
    frameworks.add_argument(
        "records",
        type=Path,
        nargs="+",
        metavar="CONFORMANCE.json",
        help="what pytest --target=trl and the like wrote",
    )
    frameworks.add_argument(
        "--defects",
        type=Path,
        default=Path("docs/records/frameworks/defects.toml"),
        help="the defects with their reproducers (default: %(default)s)",
    )
    frameworks.add_argument(
        "--into", type=Path, metavar="FILE.md", help="replace what stands between its markers"
    )
    frameworks.set_defaults(run=_frameworks, kept="the document is as it was")


def _frameworks(options: argparse.Namespace) -> int:
    from precision_lib.records.record import RecordError, load_record
    from precision_lib.reporting.frameworks import FrameworksError, frameworks
    from precision_lib.reporting.markdown import MarkerError, write_between

    try:
        blocks = [load_record(path)["precision"] for path in options.records]
        text = frameworks(blocks, options.defects)
        if options.into is not None:
            write_between(options.into, "frameworks", text)
    except (FrameworksError, MarkerError, RecordError, OSError) as error:
        raise UsageError(str(error)) from None
    if options.into is None:
        print(text)  # noqa: T201
    return OK
