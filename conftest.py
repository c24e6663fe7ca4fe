"""Wiring between pytest and the library: options, markers, the record, the summary.

Nothing here computes a number. torch is imported only where --gpu asks for it, so that collecting
the tests stays cheap.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from precision_lib.environment import set_environment

set_environment()

from precision_lib import faults, matrix  # noqa: E402
from precision_lib.jsonio import check_writable  # noqa: E402
from precision_lib.records.record import Recorder  # noqa: E402
from precision_lib.reporting import gate, table  # noqa: E402
from tests import gating, known  # noqa: E402

if TYPE_CHECKING:
    from precision_lib.targets import Target

TESTS = Path(__file__).parent / "tests"
RECORDER = pytest.StashKey[Recorder]()
TARGET: pytest.StashKey["Target"] = pytest.StashKey()
DEFAULT_RECORD = Path("results/report.json")
SWEEP_RECORD = DEFAULT_RECORD.with_name("sweep_report.json")
#: With --target these tests run and no others.
CONFORMANCE = TESTS / "forensics" / "test_conformance.py"
#: Tiers that run only when a marker expression or a path asks for them.
ON_REQUEST = ("sweep", "benchmark")
TIERS = {"unit": "unit", "forensics": "forensics", "sweep": "sweep", "benchmarks": "benchmark"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("precision forensics")
    group.addoption("--gpu", action="store_true", help="run on CUDA; exit code 4 without a device")
    group.addoption(
        "--model", default="embedded", metavar="NAME_OR_DIR", help="causal LM (default: embedded)"
    )
    group.addoption(
        "--reward-model",
        default="embedded",
        metavar="NAME_OR_DIR",
        help="sequence classifier with one label (default: embedded)",
    )
    group.addoption("--seed", type=int, default=0, help="of prompts, responses and direction")
    group.addoption(
        "--matrix", type=Path, metavar="FILE.toml", help="precision configurations of your own"
    )
    group.addoption(
        "--target",
        metavar="MODULE[:ATTRIBUTE]",
        help="run the conformance tests, and only those, on this PPO core; or on trl, verl, "
        "openrlhf, torchtune",
    )
    group.addoption("--fresh", action="store_true", help="sweep: run finished cells again")
    group.addoption(
        "--counterfactuals", action="store_true", help="sweep: train the single demotions too"
    )
    group.addoption("--jobs", type=int, metavar="N", help="sweep: cells at once")
    group.addoption(
        "--executor", default="local", choices=("local", "ray"), help="sweep: who runs the cells"
    )
    gating.add_options(group)
    known.add_options(group)
    group.addoption("--quick", action="store_true", help="smaller budget, for a first look")
    group.addoption(
        "--plant-fault",
        choices=sorted(faults.FAULTS),
        metavar="NAME",
        help="break one kernel on purpose, to see which test catches it",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    _let_children_find_the_package()
    if config.getoption("gpu"):
        from precision_lib.models.loading import NoDeviceError, resolve_device

        try:
            resolve_device("cuda")
        except NoDeviceError as error:
            raise pytest.UsageError(f"--gpu: {error}") from None
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("run without -n: the cells of a run share one model's forwards")
    try:
        configurations = matrix.all_configurations(config.getoption("matrix"))
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--matrix: {error}") from None
    path = getattr(config.option, "json_report_file", None) or DEFAULT_RECORD
    config.stash[RECORDER] = Recorder(Path(path), configurations)
    if not config.option.collectonly:
        try:
            check_writable(Path(path).parent)
        except OSError as error:
            raise pytest.UsageError(str(error)) from None
    if hasattr(config.option, "json_report_file"):
        config.option.json_report_file = None  # written here instead: whole, strict, renamed
    target = config.getoption("target")
    known_failures = config.getoption("known_failures")
    if target is not None and not target.strip():
        raise pytest.UsageError("--target: names no module (is a variable not set?)")
    if known_failures is not None and (target is None or not known_failures.strip()):
        raise pytest.UsageError(
            "--known-failures: needs the name of a file and a --target, whose failures it lists"
        )
    gating.configure(config)
    fault = config.getoption("plant_fault")
    if fault:
        planted = ExitStack()
        planted.enter_context(faults.plant(fault))
        config.add_cleanup(planted.close)
        config.stash[RECORDER].planted_fault = fault
    if config.getoption("target"):
        if fault:
            raise pytest.UsageError("--plant-fault breaks the built-in core: leave out --target")
        config.stash[TARGET] = _load_target(config.getoption("target"))
        known.configure(config, config.stash[TARGET])
        # Each failure ends with the line that repeats it; a list of them would hide the table.
        config.option.reportchars = (
            config.option.reportchars.replace("a", "").replace("f", "") + "s"
        )


def _let_children_find_the_package() -> None:
    """``python -m precision_lib.cli`` runs in any directory, also where nothing is installed."""
    paths = [str(TESTS.parent), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def _load_target(name: str) -> "Target":
    from precision_lib.targets import TargetError, load_target

    try:
        return load_target(name)
    except TargetError as error:
        raise pytest.UsageError(f"--target: {error}") from None


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
    if collection_path == gating.REGRESSIONS:
        return None if gating.BASELINE in config.stash else True
    elsewhere = collection_path.is_file() and collection_path != CONFORMANCE
    return True if config.getoption("target") and elsewhere else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path == gating.REGRESSIONS)
    if items and items[-1].path == gating.REGRESSIONS and gating.BASELINE not in config.stash:
        raise pytest.UsageError(
            "test_regressions.py compares with a baseline: give --baseline FILE"
        )
    others = {
        item.path.name for item in items if item.path not in (CONFORMANCE, gating.REGRESSIONS)
    }
    if config.getoption("target") and (others or not items):
        named = f": leave out {', '.join(sorted(others))}" if others else ""
        raise pytest.UsageError(f"--target runs the conformance tests and no others{named}")
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        tier = (
            TIERS.get(item.path.relative_to(TESTS).parts[0]) if TESTS in item.path.parents else None
        )
        if tier is not None:
            item.add_marker(tier)
        dropped_here = tier in ON_REQUEST and not _asked_for(config, item, tier)
        (dropped if dropped_here else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _asked_for(config: pytest.Config, item: pytest.Item, tier: str) -> bool:
    """True when the marker expression names the tier, or a path argument its folder or a test."""
    if tier in re.findall(r"\w+", config.getoption("markexpr")):
        return True
    folder = Path(__file__).parent / "tests" / item.path.relative_to(TESTS).parts[0]
    paths = (config.invocation_params.dir / a.split("::")[0] for a in config.args)
    return any(folder == p or folder in p.parents for p in (path.resolve() for path in paths))


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
            recorder.path = SWEEP_RECORD if swept else DEFAULT_RECORD.with_name("tests.json")
    others = any(i.path == CONFORMANCE or i.get_closest_marker("sweep") for i in session.items)
    if (recorder.expected or others) and not session.config.option.collectonly:
        recorder.begin()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    recorder = config.stash[RECORDER]
    if config.option.collectonly or not session.testscollected:
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
        report.pop("root", None)  # a path of this machine
        report.pop("environment", None)  # always empty with pytest-metadata >= 3; see context
    recorder.write(report)
    gating.write_files(session, recorder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    recorder = config.stash.get(RECORDER, None)
    if recorder is None or not recorder.path.is_file():
        return
    block = recorder.block()
    lines = table.summary(block, details=config.option.verbose > 0)
    judged = gate.gate_lines(block)
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


@pytest.fixture(autouse=True)
def numerical_state_is_left_as_found() -> Iterator[None]:
    """Fail a test that leaves a global numerical switch or a random generator changed."""
    if "torch" not in sys.modules:
        yield
        return
    from precision_lib.runtime import numerical_state

    before, modules = numerical_state(), set(sys.modules)
    yield
    after = numerical_state()
    if "transformers" in sys.modules and "transformers" not in modules:
        before.pop("generators")  # importing transformers 5.17 draws from random
    changed = {k: (before[k], after[k]) for k in before if before[k] != after[k]}
    assert not changed, f"the test left numerical state behind (before, after): {changed}"
