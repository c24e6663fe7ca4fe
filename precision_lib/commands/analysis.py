"""``analyze``: pictures of what was measured, and one page with all of it.

File names are fixed: a call replaces the pictures of an earlier one and prints what it drew.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from precision_lib.commands import OK, UsageError


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
    analyze.add_argument(
        "--into",
        type=Path,
        metavar="FILE.md",
        help="put the sweep's tables between this file's 'training' markers",
    )
    analyze.set_defaults(run=_analyze, kept="pictures that were drawn are kept")


def _check_extra() -> None:
    """Refuse before anything is read when the packages that draw are not installed."""
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"analyze needs {' and '.join(missing)}, not installed here: "
            'pip install "rlhf-precision-forensics[report]"'
        )


def _analyze(options: argparse.Namespace) -> int:
    _check_extra()
    from precision_lib.phases.results import analyse, load_results
    from precision_lib.reporting.findings_training import training_tables
    from precision_lib.reporting.markdown import MarkerError, write_between

    try:
        results = load_results(options.results_dir)
        if options.into is not None and results.sweep is None:
            raise ValueError(f"{options.results_dir} holds no sweep for {options.into}")
        tables = training_tables(results.sweep) if options.into and results.sweep else ""
        files = analyse(results, options.output_dir or options.results_dir / "plots")
        if options.into is not None:
            write_between(options.into, "training", tables)
    except (MarkerError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    for file in files:
        print(file)  # noqa: T201
    return OK
