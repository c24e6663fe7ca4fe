"""``gate`` and ``calibrate``: records against a baseline, each other and themselves.

Exit codes: 0 no regression, 1 regression, 2 not comparable, 4 wrong usage.
"""

import argparse
from pathlib import Path
from typing import Any

from precision_lib.commands import OK, UsageError, add_models, load_models, print_lines
from precision_lib.reporting.styles import Line


def add_gate(commands: Any) -> None:
    gate = commands.add_parser("gate", help="a record against a baseline, as an exit code")
    gate.add_argument(
        "report", type=Path, metavar="REPORT.json", help="what pytest -m forensics wrote"
    )
    gate.add_argument("--baseline", type=Path, metavar="FILE", help="what it may not be worse than")
    gate.add_argument(
        "--update-baseline",
        action="store_true",
        help="write the record to --baseline instead (default: baselines/<device-class>.json)",
    )
    gate.add_argument(
        "--markdown", type=Path, metavar="FILE", help="one screen of it, for a pull request"
    )
    gate.add_argument(
        "--compare",
        type=Path,
        metavar="EARLIER.json",
        help="what changed since this record instead, without a verdict",
    )
    gate.set_defaults(run=_gate, kept="the record and the baseline are as they were")


def _gate(options: argparse.Namespace) -> int:
    from precision_lib.compare.baseline import BaselineError
    from precision_lib.phases import gate as phase
    from precision_lib.record.files import RecordError
    from precision_lib.reporting.gate import gate_lines

    try:
        if options.compare is not None:
            print_lines(_compared(options.report, options.compare))
            return OK
        if options.update_baseline:
            path = phase.update_baseline(options.report, options.baseline)
            print_lines([(f"baseline: {path}", "")])
            return OK
        if options.baseline is None:
            raise UsageError("give --baseline FILE, --update-baseline or --compare EARLIER.json")
        record, code = phase.run_gate(options.report, options.baseline, options.markdown)
    except (BaselineError, RecordError, OSError) as error:
        raise UsageError(str(error)) from None
    print_lines(gate_lines(record))
    return code


def _compared(report: Path, earlier: Path) -> list[Line]:
    """Lines about what changed from one record to a later one."""
    from precision_lib.record.files import load_record
    from precision_lib.reporting.comparison import comparison_lines

    return comparison_lines(load_record(earlier), load_record(report))


def add_calibrate(commands: Any) -> None:
    calibrate = commands.add_parser(
        "calibrate", help="the noise floor of this device, and what the gate can see above it"
    )
    calibrate.add_argument(
        "--baseline", type=Path, metavar="FILE", help="put the floors into this baseline too"
    )
    calibrate.add_argument("--quick", action="store_true", help="on the budget of a first look")
    calibrate.add_argument(
        "--output_dir", type=Path, default=Path("results"), help="default: %(default)s"
    )
    add_models(calibrate, pipeline=True)
    calibrate.add_argument("--seed", type=int, default=0)
    calibrate.set_defaults(run=_calibrate, kept="nothing was written")


def _calibrate(options: argparse.Namespace) -> int:
    from precision_lib.compare.baseline import load_baseline
    from precision_lib.jsonio import check_writable
    from precision_lib.matrix import all_configurations
    from precision_lib.phases import calibrate as phase
    from precision_lib.reporting.bar import progress_bar
    from precision_lib.reporting.calibration import calibration_lines

    try:
        check_writable(options.output_dir)
        if options.baseline is not None:
            load_baseline(options.baseline)
        pipeline = load_models(options)
        device = pipeline.policy.model.device.type
        total = phase.variation_cells(len(all_configurations(None)), device)
        with progress_bar("calibrating", "cell", total) as bar:
            result = phase.calibrate(
                pipeline, quick=options.quick, seed=options.seed, progress=bar.update
            )
        path = phase.write_calibration(result, options.output_dir, options.baseline)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    print_lines([*calibration_lines(result), (f"record: {path}", "")])
    return OK
