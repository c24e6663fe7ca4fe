"""``analyze``: pictures of what was measured.

The hazard is a picture of an older run: the file names are fixed, so each call replaces them all,
and the command prints what it drew and from what.
"""

import argparse
from pathlib import Path
from typing import Any

from precision_lib.commands import OK, UsageError


def add_analyze(commands: Any) -> None:
    analyze = commands.add_parser("analyze", help="pictures of a sweep, as PNG and SVG")
    analyze.add_argument(
        "--results_dir",
        type=Path,
        default=Path("results/sweep"),
        help="with the sweep.json of a sweep (default: %(default)s)",
    )
    analyze.add_argument("--output_dir", type=Path, help="default: plots in --results_dir")
    analyze.add_argument(
        "--into",
        type=Path,
        metavar="FILE.md",
        help="put the sweep's tables between this file's 'training' markers",
    )
    analyze.set_defaults(run=_analyze, kept="pictures that were drawn are kept")


def _analyze(options: argparse.Namespace) -> int:
    from precision_lib.phases.sweep import RECORD, load_sweep_record
    from precision_lib.reporting.findings_training import training_tables
    from precision_lib.reporting.markdown import MarkerError, write_between
    from precision_lib.reporting.plots import draw_sweep

    try:
        record = load_sweep_record(options.results_dir / RECORD)
        files = draw_sweep(record, options.output_dir or options.results_dir / "plots")
        if options.into is not None:
            write_between(options.into, "training", training_tables(record))
    except (MarkerError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    for file in files:
        print(file)  # noqa: T201
    return OK
