"""Wiring between pytest and the library: options, the record, the summary.

Loaded by name (``-p precision_lib.plugin.suite``), in the checkout and for the packed tests, and
never in anybody else's run. Nothing here computes a number. torch is imported only where --gpu or a
target asks for it, so that collecting the tests stays cheap.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from precision_lib.environment import set_environment

set_environment()

from precision_lib import faults, matrix  # noqa: E402
from precision_lib.jsonio import check_writable  # noqa: E402
from precision_lib.plugin import gating, grouping, known, main_job, options  # noqa: E402
from precision_lib.plugin.packaged import CONFORMANCE, FORENSICS, REGRESSIONS, SWEEP  # noqa: E402
from precision_lib.record.recorder import Recorder  # noqa: E402
from precision_lib.reporting import gate, table  # noqa: E402

if TYPE_CHECKING:
    from precision_lib.targets import Target

RECORDER = pytest.StashKey[Recorder]()
TARGET: pytest.StashKey["Target"] = pytest.StashKey()
DEFAULT_RECORD = Path("results/report.json")
TESTS_RECORD = DEFAULT_RECORD.with_name("tests.json")
SWEEP_RECORD = DEFAULT_RECORD.with_name("sweep_report.json")
MARKERS = (
    "forensics: the main job, a verdict per hypothesis and configuration",
    "sweep: full PPO runs, only when asked for",
    "cell(hypothesis): measures the cell of that hypothesis for its configuration",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_all(parser.getgroup("precision forensics").addoption)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    _check_device(config)
    _load_hypothesis_profile(config)
    _open_record(config)
    _check_target_options(config)
    gating.configure(config)
    _plant_fault(config)
    if config.getoption("target"):
        config.stash[TARGET] = _load_target(config.getoption("target"))
        known.configure(config, config.stash[TARGET])
        config.pluginmanager.register(grouping.OneBlockForACause())
        # Each failure ends with the line that repeats it; a list of them would hide the table.
        config.option.reportchars = (
            config.option.reportchars.replace("a", "").replace("f", "") + "s"
        )


def _check_device(config: pytest.Config) -> None:
    if config.getoption("gpu"):
        from precision_lib.models.loading import NoDeviceError, resolve_device

        try:
            resolve_device("cuda")
        except NoDeviceError as error:
            raise pytest.UsageError(f"--gpu: {error}") from None


def _load_hypothesis_profile(config: pytest.Config) -> None:
    """``ci`` draws the same examples in every run, ``quick`` few of them, ``explore`` new ones.

    A target is shown them all: its list of known failures is strict.
    """
    from hypothesis import settings

    from precision_lib.conformance import profiles

    settings.register_profile("ci", profiles.CI)
    settings.register_profile("quick", profiles.QUICK)
    settings.register_profile("explore", profiles.EXPLORE)
    few = config.getoption("quick") and not config.getoption("target")
    settings.load_profile("quick" if few else "ci")


def _open_record(config: pytest.Config) -> None:
    """The recorder of this run; pytest-json-report's file is written through it."""
    try:
        configurations = matrix.all_configurations(config.getoption("matrix"))
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--matrix: {error}") from None
    path = Path(getattr(config.option, "json_report_file", None) or DEFAULT_RECORD)
    if path == DEFAULT_RECORD and getattr(config.option, "numprocesses", None):
        path = TESTS_RECORD  # pytest-xdist's workers collect the tests, and measure nothing
    config.stash[RECORDER] = Recorder(path, configurations)
    if not config.option.collectonly:
        try:
            check_writable(path.parent)
        except OSError as error:
            raise pytest.UsageError(str(error)) from None
    if hasattr(config.option, "json_report_file"):
        config.option.json_report_file = None  # written here instead: whole, strict, renamed


def _check_target_options(config: pytest.Config) -> None:
    target = config.getoption("target")
    known_failures = config.getoption("known_failures")
    if target is not None and not target.strip():
        raise pytest.UsageError("--target: names no module (is a variable not set?)")
    if known_failures is not None and (target is None or not known_failures.strip()):
        raise pytest.UsageError(
            "--known-failures: needs the name of a file and a --target, whose failures it lists"
        )
    if config.getoption("update_known_failures") and target is None:
        raise pytest.UsageError(
            "--update-known-failures: needs a --target, whose failures it lists"
        )


def _plant_fault(config: pytest.Config) -> None:
    fault = config.getoption("plant_fault")
    if not fault:
        return
    planted = ExitStack()
    planted.enter_context(faults.plant(fault))
    config.add_cleanup(planted.close)
    config.stash[RECORDER].planted_fault = fault
    if config.getoption("target"):
        raise pytest.UsageError("--plant-fault breaks the built-in core: leave out --target")


def _load_target(name: str) -> "Target":
    from precision_lib.targets import TargetError, load_target

    try:
        return load_target(name)
    except TargetError as error:
        raise pytest.UsageError(f"--target: {error}") from None


def pytest_sessionstart(session: pytest.Session) -> None:
    main_job.check_models(session.config)


def pytest_report_header(config: pytest.Config) -> str | list[str] | None:
    fault = config.getoption("plant_fault")
    if fault:
        broken = faults.FAULTS[fault]
        return f"PLANTED FAULT {fault}, in {broken.function}: {broken.meaning} ({broken.source})"
    if TARGET not in config.stash:
        return None
    target = config.stash[TARGET]
    return [target.capabilities(), *known.header(config, target)]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --target, no other test file is even imported; without --baseline, not that one."""
    if collection_path == REGRESSIONS:
        return None if gating.BASELINE in config.stash else True
    elsewhere = collection_path.is_file() and collection_path != CONFORMANCE
    return True if config.getoption("target") and elsewhere else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The checks of the core come after the studies: a second process runs them meanwhile.
    last = CONFORMANCE, REGRESSIONS
    items.sort(key=lambda item: last.index(item.path) + 1 if item.path in last else 0)
    if items and items[-1].path == REGRESSIONS and gating.BASELINE not in config.stash:
        raise pytest.UsageError(
            "test_regressions.py compares with a baseline: give --baseline FILE"
        )
    others = {item.path.name for item in items if item.path not in (CONFORMANCE, REGRESSIONS)}
    if config.getoption("target") and (others or not items):
        named = f": leave out {', '.join(sorted(others))}" if others else ""
        raise pytest.UsageError(f"--target runs the conformance tests and no others{named}")
    for item in items:
        for folder in (FORENSICS, SWEEP):
            if folder in item.path.parents:
                item.add_marker(folder.name)


def pytest_collection_finish(session: pytest.Session) -> None:
    recorder = session.config.stash[RECORDER]
    for item in session.items:
        marker = item.get_closest_marker("cell")
        if marker is not None and isinstance(item, pytest.Function):
            configuration: Any = item.callspec.params["configuration"]
            recorder.expected.append((marker.args[0], configuration.name))
    if recorder.path == DEFAULT_RECORD:  # belongs to real measurements
        if session.config.getoption("target"):
            recorder.path = DEFAULT_RECORD.with_name("conformance.json")
        elif recorder.planted_fault:
            recorder.path = DEFAULT_RECORD.with_name("planted_fault.json")
        elif not recorder.expected:
            swept = any(item.get_closest_marker("sweep") for item in session.items)
            recorder.path = SWEEP_RECORD if swept else TESTS_RECORD
    others = any(i.path == CONFORMANCE or i.get_closest_marker("sweep") for i in session.items)
    if session.config.option.collectonly:
        return
    if session.config.getoption("resume") and not recorder.expected:
        raise pytest.UsageError("--resume continues the main job: select tests of its cells")
    if recorder.expected:
        main_job.open_with_estimate(session, recorder)
    if recorder.expected or others:
        recorder.begin()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    recorder = config.stash[RECORDER]
    worker = hasattr(config, "workerinput")  # of pytest-xdist, whose controller writes the record
    if worker or config.option.collectonly or not session.testscollected:
        return
    if TARGET in config.stash and recorder.conformance and not recorder.conformance.functions:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        gating.note(session, "nothing was compared: no check came to a result")
    gating.judge_run(session, recorder)
    refused = recorder.path == SWEEP_RECORD and not recorder.training
    if refused or (recorder.expected and not recorder.cells):
        return  # nothing was measured: an earlier record is worth more
    report = getattr(getattr(config, "_json_report", None), "report", None)
    if report is not None:
        report["exitcode"] = int(session.exitstatus)
    recorder.write(report)
    gating.write_files(session, recorder)
    known.write_list(session, recorder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    recorder = config.stash.get(RECORDER, None)
    if recorder is None or not recorder.path.is_file():
        return
    record = recorder.record()
    lines = table.summary(record, details=config.option.verbose > 0)
    judged = gate.gate_lines(record)
    lines += [("", ""), *judged] if lines and judged else judged
    if lines:
        terminalreporter.section("precision forensics")
    for text, style in lines:
        terminalreporter.write_line(text, **({style: True} if style else {}))
    if recorder.cells:
        terminalreporter.write_line(
            f"record: {recorder.path} (cells as measured: {recorder.cells_path})"
        )
    elif recorder.conformance or recorder.training:
        terminalreporter.write_line(f"record: {recorder.path}")
    for line in config.stash.get(gating.NOTES, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def recorder(pytestconfig: pytest.Config) -> Recorder:
    """Where the cells of this run go."""
    return pytestconfig.stash[RECORDER]


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> "Target":
    """The core under test: that of --target, or the built-in one as it is, faults included."""
    from precision_lib.targets import BUILT_IN

    if TARGET not in pytestconfig.stash:
        pytestconfig.stash[TARGET] = _load_target(BUILT_IN)
    return pytestconfig.stash[TARGET]


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """``cuda`` with --gpu, ``cpu`` without."""
    return "cuda" if pytestconfig.getoption("gpu") else "cpu"
