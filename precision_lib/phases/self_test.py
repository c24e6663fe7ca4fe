"""Plant every fault and see who catches it: the gate under test.

Each fault goes into a throw-away copy, a core with one wrong function or another process with a
broken pipeline. It is caught by a test with a margin, or missed. A fault whose effect lies below
the error of FP32 itself is told apart from one that was overlooked.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from precision_lib.compare.baseline import baseline_of, write_baseline
from precision_lib.faults import FAULTS, Fault, wrong_core
from precision_lib.record.changes import LARGEST
from precision_lib.record.codec import decode
from precision_lib.record.context import Context, run_context
from precision_lib.record.files import load_record, write_result
from precision_lib.record.self_test import Catch, CleanRuns, FaultOutcome, SelfTest
from precision_lib.targets import INTERFACE
from precision_lib.targets.objectives import FUNCTIONS, with_options

CAUGHT, MISSED = "caught", "missed"
TOO_SMALL, FALSE_ALARM = "below the noise floor", "false alarm"
TIMES = "times the limit"
#: One fault of the core, one of the pipeline, one harmless change.
QUICK = ("log_of_softmax", "scores_through_bf16", "groups_from_the_back")
#: A change that moves no metric by more than this share of its limit is called none.
_NOTHING = 1e-6
_REGRESSIONS = "test_regressions.py"


class SelfTestError(ValueError):
    """The self-test cannot run; the message says why and what to do."""


def plant_faults(
    names: Sequence[str], output_dir: Path, say: Callable[[FaultOutcome], object] = lambda _: None
) -> list[FaultOutcome]:
    """Plant the named faults one after the other; what became of each.

    Args:
        say: called with what became of each fault.

    Raises:
        SelfTestError: unknown fault, or the suite is not green without a fault.
    """
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise SelfTestError(f"unknown fault {unknown[0]!r}; known: {', '.join(sorted(FAULTS))}")
    output_dir.mkdir(parents=True, exist_ok=True)
    faults = [FAULTS[name] for name in names]
    baselines = {
        file: _clean_baseline(file, output_dir)
        for file in sorted({file_of(fault) for fault in faults} - {""})
    }
    outcomes = []
    for fault in faults:
        file = file_of(fault)
        caught = in_a_core(fault) if fault.function in INTERFACE | FUNCTIONS else []
        smallest = None
        if file:
            more, smallest = planted(fault, baselines[file], output_dir)
            caught += more
        outcomes.append(_outcome(fault, caught, smallest))
        say(outcomes[-1])
    return outcomes


def file_of(fault: Fault) -> str:
    """The file of the pipeline's tests that a fault is planted for; "" for the core alone."""
    return fault.measured_in or fault.caught_in_pipeline.split("::")[0]


def in_a_core(fault: Fault) -> list[Catch]:
    """The conformance check that catches a core with this fault: the named one, else another."""
    from precision_lib.conformance.checks import checks

    function = getattr(wrong_core(fault.name), fault.function)
    offered = with_options({fault.function: function})
    mine = [check for check in checks() if check.function in offered]
    for check in sorted(mine, key=lambda check: check.name != fault.caught_by):
        margin = _margin(check, fault)
        if margin is not None:
            size = math.inf if margin >= LARGEST else margin or None
            return [Catch(check.name, size, TIMES)]
    return []


def _margin(check: Any, fault: Fault) -> float | None:
    """By how many times its limit a check fails (0 where it has none); None where it passes."""
    from hypothesis import Phase, settings

    from precision_lib.conformance.failure import ConformanceFailure
    from precision_lib.conformance.profiles import CI
    from precision_lib.conformance.runner import run

    unshrunk = settings(CI, phases=[phase for phase in CI.phases if phase is not Phase.shrink])
    try:
        run(check, getattr(wrong_core(fault.name), fault.function), unshrunk)
    except ConformanceFailure as failure:
        return failure.times
    return None


def planted(
    fault: Fault, baseline: Path | None, output_dir: Path
) -> tuple[list[Catch], str | None]:
    """Who catches a fault that is planted in a process of the pipeline's tests.

    Returns:
        the tests that fail and the largest regression; and, where there is none of either, how much
        larger the fault would have to be for the gate to see it.
    """
    record = output_dir / "planted" / f"{fault.name}.json"
    arguments = [f"--plant-fault={fault.name}"]
    if baseline is not None:
        arguments += [f"--baseline={baseline}", _test_file(_REGRESSIONS)]
    code, text = _pytest(file_of(fault), record, *arguments)
    if not record.is_file():  # nothing could be measured
        if code != 1:
            raise SelfTestError(f"{fault.name} ended with exit code {code}:\n{text}")
        return [Catch(f"{file_of(fault)}: no test could run", None, "")], None
    result = load_record(record)
    tests = dict.fromkeys(_short(name) for name in result.failed_tests if _REGRESSIONS not in name)
    by = [Catch(name, None, "") for name in tests]
    for change in sorted(result.regressions, key=lambda c: c.times_the_limit)[-1:]:
        times = change.times_the_limit
        name = f"gate: {change.where} {change.configuration} {change.metric}"
        by.append(Catch(name, times if math.isfinite(times) else None, TIMES))
    if by or result.gate is None or not result.gate.moved.share_of_limit > _NOTHING:
        return by, None
    moved = result.gate.moved
    return by, f"{1 / moved.share_of_limit:.2g} times this size ({moved.metric})"


def _outcome(fault: Fault, caught: list[Catch], smallest: str | None) -> FaultOutcome:
    hit, miss = (FALSE_ALARM, TOO_SMALL) if fault.harmless else (CAUGHT, MISSED)
    return FaultOutcome(
        name=fault.name,
        function=fault.function,
        meaning=fault.meaning,
        source=fault.source,
        outcome=hit if caught else miss,
        caught=tuple(caught),
        smallest_detectable=None if caught else smallest,
    )


def _short(nodeid: str) -> str:
    """``file::test`` without its parameter."""
    return nodeid.split("/")[-1].split("[")[0]


def _clean_baseline(file: str, output_dir: Path) -> Path | None:
    """The baseline of one file's cells, from a run without a fault, which has to be green.

    None where the file measures no cell.
    """
    name = file.removesuffix(".py")
    record = output_dir / "planted" / f"clean_{name}.json"
    code, text = _pytest(file, record)
    if code != 0:
        raise SelfTestError(f"{file} is not green without a fault (exit code {code}):\n{text}")
    measured = load_record(record)
    if not measured.cells:
        return None
    baseline = output_dir / "planted" / f"baseline_{name}.json"
    write_baseline(baseline, baseline_of(measured))
    return baseline


def _test_file(name: str) -> str:
    """A file of the pipeline's tests as ``run`` takes it."""
    return f"tests/forensics/{name}"


def _pytest(file: str, record: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a quick run of one file of the pipeline's tests."""
    record.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "precision_lib.cli", "run", _test_file(file), "--quick", "-q"),
        *(f"--json-report-file={record}", *arguments),
    ]
    done = subprocess.run(
        command, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, check=False
    )
    return done.returncode, (done.stdout + done.stderr)[-3000:]


def write_self_test(
    output_dir: Path, faults: Sequence[FaultOutcome], clean_runs: CleanRuns | None
) -> Path:
    """Write ``self_test.json``; where it went.

    Args:
        clean_runs: of :func:`clean_runs.false_alarms`; None where they were not run.
    """
    context = decode(Context, run_context("cpu", 0))
    path = output_dir / "self_test.json"
    write_result(path, SelfTest(context, tuple(faults), clean_runs), "self-test")
    return path
