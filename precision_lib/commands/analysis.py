"""``analyze``: pictures of what was measured, and one page with all of it.

File names are fixed: a call replaces the pictures of an earlier one and prints what it drew.
"""

import argparse
from pathlib import Path
from typing import Any

from precision_lib.commands import OK, UsageError, check_report_extra


def add_analyze(commands: Any) -> None:
    analyze = commands.add_parser(
        "analyze", help="pictures as PNG and SVG, and one HTML page, of what was measured"
    )
    analyze.add_argument(
        "--results_dir",
        type=Path,
        default=Path("results"),
        help="with report.json, sweep.json (or sweep/sweep.json), benchmarks.json or "
        "self_test.json; whatever is there is shown (default: %(default)s)",
    )
    analyze.add_argument("--output_dir", type=Path, help="default: plots in --results_dir")
    analyze.set_defaults(run=_analyze, kept="pictures that were drawn are kept")


def _analyze(options: argparse.Namespace) -> int:
    check_report_extra("analyze")
    from precision_lib.phases.results import analyse, load_results

    try:
        results = load_results(options.results_dir)
        files = analyse(results, options.output_dir or options.results_dir / "plots")
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    for file in files:
        print(file)  # noqa: T201
    return OK
