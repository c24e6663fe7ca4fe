"""Judge a record that lies on disk.

The hazard. A run that was killed leaves the record of an earlier one behind, which is whole, green
and about other code. So the cells that were measured since are looked at first.
"""

from pathlib import Path
from typing import Any

from precision_lib.jsonio import write_text
from precision_lib.records.baseline import (
    BaselineError,
    baseline_of,
    baseline_path,
    load_baseline,
    write_baseline,
)
from precision_lib.records.gate import Judgement, judge
from precision_lib.records.record import RecordError, load_record, unfinished_run
from precision_lib.reporting.gate import pull_request


def run_gate(
    report: Path, baseline_file: Path, markdown: Path | None = None
) -> tuple[dict[str, Any], int]:
    """The record's ``precision`` block with the gate's verdict in it, and the exit code.

    Args:
        markdown: where the summary for a pull request goes.

    Raises:
        RecordError, BaselineError: a file is missing or damaged. OSError: ``markdown`` cannot be
            written.
    """
    baseline = load_baseline(baseline_file)
    unfinished = unfinished_run(report)
    if unfinished and not report.is_file():
        block: dict[str, Any] = {"cells": [], "expected": [], "context": {}, "planted_fault": None}
        judgement = Judgement((), (), (unfinished,), 0)
    else:
        record = load_record(report)
        block = record["precision"]
        judgement = judge(block, baseline)
        more = [*([unfinished] if unfinished else []), *distrust(record, judgement)]
        judgement = judgement.with_obstacles(more)
    block = block | {
        "regressions": [c.as_json() for c in judgement.regressions],
        "gate": {"baseline": str(baseline_file), **judgement.as_json()},
    }
    if markdown is not None:
        write_text(markdown, pull_request(block))
    return block, judgement.exit_code


def failed_tests(record: dict[str, Any]) -> list[str]:
    """Tests of the run that failed for another reason than the gate itself."""
    return [
        test["nodeid"]
        for test in record.get("tests", [])
        if test["outcome"] in ("failed", "error") and "test_regressions.py" not in test["nodeid"]
    ]


def distrust(record: dict[str, Any], judgement: Judgement) -> list[str]:
    """A sentence when tests failed and no regression says why."""
    failed = failed_tests(record)
    if not failed or judgement.regressions:
        return []
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return [f"the measurement cannot be trusted: {failed[0]}{more} failed"]


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
    block = record["precision"]
    path = file or baseline_path(block)
    write_baseline(path, baseline_of(block))
    return path
