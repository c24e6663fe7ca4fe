"""``self-test``: what the gate catches, with what margin, and how often it is red for no reason."""

import argparse
from pathlib import Path
from typing import Any

from precision_lib.commands import OK, REGRESSION, UsageError, print_lines


def add_self_test(commands: Any) -> None:
    test = commands.add_parser(
        "self-test", help="plant every fault and count false alarms: the gate under test"
    )
    which = test.add_mutually_exclusive_group()
    which.add_argument(
        "--faults", nargs="*", metavar="NAME", help="default: all; none with no name behind it"
    )
    which.add_argument(
        "--quick", action="store_true", help="a first look: three of them, one minute"
    )
    test.add_argument(
        "--clean_runs",
        type=int,
        default=0,
        metavar="N",
        help="runs with other seeds in which nothing is wrong, half a minute each (default: 0)",
    )
    test.add_argument("--jobs", type=int, default=1, help="clean runs at once (default: 1)")
    test.add_argument(
        "--output_dir", type=Path, default=Path("results"), help="default: %(default)s"
    )
    test.set_defaults(run=_self_test, kept="clean runs that were finished are kept")


def _self_test(options: argparse.Namespace) -> int:
    from precision_lib.faults import FAULTS
    from precision_lib.phases import clean_runs
    from precision_lib.phases import self_test as phase
    from precision_lib.reporting.bar import progress_bar
    from precision_lib.reporting.self_test import self_test_lines

    everything = phase.QUICK if options.quick else FAULTS
    names = list(everything) if options.faults is None else options.faults
    if options.clean_runs < 0 or options.jobs < 1:
        raise UsageError("--clean_runs and --jobs are counts: give 0 or more, and 1 or more")
    try:
        with progress_bar("planting", "fault", len(names)) as bar:
            faults = phase.plant_faults(names, options.output_dir, lambda _: bar.update(1))
    except (phase.SelfTestError, OSError) as error:
        raise UsageError(str(error)) from None
    clean = None
    if options.clean_runs:
        seeds, directory = range(options.clean_runs + 1), options.output_dir / "clean_runs"
        with progress_bar("clean runs", "run", len(seeds)) as bar:
            clean_runs.measure(seeds, directory, options.jobs, lambda _: bar.update(1))
        clean = clean_runs.false_alarms(seeds, directory)
    path = phase.write_self_test(options.output_dir, faults, clean)
    print_lines([*self_test_lines(faults, clean), (f"record: {path}", "")])
    wrong = any(fault.outcome in (phase.MISSED, phase.FALSE_ALARM) for fault in faults)
    return REGRESSION if wrong or (clean and clean.false_alarms) else OK
