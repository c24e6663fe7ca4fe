"""Judge a record that lies on disk.

The hazard. A run that was killed leaves the record of an earlier one behind, which is whole, green
and about other code. So the cells that were measured since are looked at first.
"""

from dataclasses import replace
from pathlib import Path

from precision_lib.compare.baseline import (
    BaselineError,
    baseline_of,
    baseline_path,
    load_baseline,
    write_baseline,
)
from precision_lib.compare.comparison import Comparison
from precision_lib.compare.gate import judge
from precision_lib.jsonio import write_text
from precision_lib.record.files import RecordError, load_record
from precision_lib.record.record import Record, nothing_measured
from precision_lib.record.recorder import unfinished_run
from precision_lib.reporting.gate import pull_request


def run_gate(report: Path, baseline_file: Path, markdown: Path | None = None) -> tuple[Record, int]:
    """The record with the gate's verdict in it, and the exit code.

    Args:
        markdown: where the summary for a pull request goes.

    Raises:
        RecordError, BaselineError: a file is missing or damaged. OSError: ``markdown`` cannot be
            written.
    """
    baseline = load_baseline(baseline_file)
    unfinished = unfinished_run(report)
    comparison = Comparison(inconclusive=(unfinished,) if unfinished else ())
    if unfinished and not report.is_file():
        record = nothing_measured()
    else:
        record = load_record(report)
        judged = judge(record, baseline)
        comparison += Comparison(inconclusive=distrust(record, judged)) + judged
    record = replace(record, regressions=comparison.worse, gate=comparison.gate(str(baseline_file)))
    if markdown is not None:
        write_text(markdown, pull_request(record))
    return record, comparison.exit_code


def failed_tests(record: Record) -> list[str]:
    """Tests of the run that failed for another reason than the gate itself."""
    return [name for name in record.failed_tests if "test_regressions.py" not in name]


def distrust(record: Record, comparison: Comparison) -> tuple[str, ...]:
    """A sentence when tests failed and no regression says why."""
    failed = failed_tests(record)
    if not failed or comparison.worse:
        return ()
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return (f"the measurement cannot be trusted: {failed[0]}{more} failed",)


def update_baseline(report: Path, file: Path | None = None) -> Path:
    """Write the baseline that a record makes; where it went.

    Args:
        file: default: ``baselines/<device-class>.json``.

    Raises:
        RecordError: the record is missing or damaged. BaselineError: its run was not whole, failed,
            or was broken on purpose. OSError: the baseline cannot be written.
    """
    unfinished = unfinished_run(report)
    if unfinished:
        raise RecordError(unfinished)
    record = load_record(report)
    failed = failed_tests(record)
    if failed:
        raise BaselineError(f"{failed[0]} of {report} failed: make no baseline of it")
    path = file or baseline_path(record)
    write_baseline(path, baseline_of(record))
    return path
