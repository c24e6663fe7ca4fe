"""Conformance of a PPO core, the built-in one or that of --target, in every region and format.

Thin callers of ``precision_lib.conformance``, where the checks and what they say stand.
"""

import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from precision_lib.plugin import known, second_core
from precision_lib.plugin.grouping import CAUSE
from precision_lib.record.conformance import ConformanceCounts
from precision_lib.record.context import run_context
from precision_lib.record.recorder import Recorder
from precision_lib.targets import Target
from precision_lib.targets.objectives import base

if TYPE_CHECKING:
    from precision_lib.conformance.checks import Check
    from precision_lib.conformance.examiner import Examiner


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from precision_lib.conformance.checks import checks

    mine = [check for check in checks() if check.test == metafunc.function.__name__]
    marked = [
        pytest.param(check, id=check.id, marks=known.marks(metafunc.config, check.name))
        for check in mine
    ]
    metafunc.parametrize("check", marked)


@pytest.fixture(scope="module")
def examiner(pytestconfig: pytest.Config, target: Target, device: str) -> Iterator["Examiner"]:
    """Who runs the checks: a child process where one is safe, else this process."""
    from precision_lib.conformance.examiner import Examiner

    limit = pytestconfig.getoption("check_timeout")
    with Examiner(target, device, limit, apart=bool(pytestconfig.getoption("target"))) as examiner:
        yield examiner


@pytest.fixture(scope="module")
def counts(
    pytestconfig: pytest.Config,
    target: Target,
    recorder: Recorder,
    device: str,
    examiner: "Examiner",
) -> ConformanceCounts:
    """What the record says about this run's conformance checks, and which examples they draw."""
    from hypothesis import settings

    profile = settings.get_current_profile_name()
    asked = pytestconfig.getoption("hypothesis_seed")
    seed = 0 if settings().derandomize else secrets.randbelow(2**31)
    seed = int(asked) if asked and asked != "random" else seed
    counts = ConformanceCounts(
        target.name,
        target.not_offered,
        profile,
        seed,
        version=target.version,
        strict=known.is_strict(pytestconfig),
    )
    if pytestconfig.getoption("target"):
        measured = {name: examiner.consequences(name) for name in target.functions}
        counts.consequences = {name: figures for name, figures in measured.items() if figures}
    recorder.conformance = counts
    recorder.context = run_context(device, seed) | recorder.context
    return counts


@pytest.fixture
def verify(
    request: pytest.FixtureRequest,
    pytestconfig: pytest.Config,
    check: "Check",
    target: Target,
    counts: ConformanceCounts,
    examiner: "Examiner",
    device: str,
    record_property: Callable[[str, object], None],
) -> Callable[[], None]:
    """Run the check; its counts go into the record, its failure is shown without a traceback.

    A function that ends the device ends the run, so that no other is blamed for it.
    """
    from precision_lib.conformance.failure import ConformanceFailure, DeviceLostError
    from precision_lib.conformance.runner import Outcome

    expected = known.entry(pytestconfig, check.name)
    pinned = [expected.input] if expected is not None and expected.input else []

    def verified() -> None:
        if check.function not in target.functions:
            pytest.skip(f"{check.function} is not offered by {target.name}")
        if check.cpu_only and device != "cpu":
            pytest.skip("on a GPU such an id ends the process; the CPU run asks for it")
        if "-gradient_exists-" in check.id and base(check.function) in target.without_gradient:
            pytest.skip(f"{check.function} carries no gradient on purpose (WITHOUT_GRADIENT)")
        found: Outcome | ConformanceFailure
        try:
            found = second_core.outcome(pytestconfig, check.name, counts.seed) or examiner.examine(
                check, counts.seed, pinned
            )
        except DeviceLostError as lost:
            found, request.session.shouldfail = lost.failure, str(lost)
        _warn_once(pytestconfig, examiner, len(request.session.items))
        counts.add(check, found)
        if isinstance(found, ConformanceFailure):
            record_property("worst_over_limit", found.times)
            record_property(CAUSE, found.signature())
            if check.is_note:
                return
            if not counts.is_counted(check):
                pytest.xfail(f"severity range, fails with --strict alone: {found.args[0]}")
            counts.known += [check.name] if expected is not None else []
            command = again(check, counts, pytestconfig)
            pytest.fail(f"{found}\n  again: {command}", pytrace=False)
        record_property("compared", found.compared)
        record_property("worst_over_limit", found.worst)

    return verified


def _warn_once(config: pytest.Config, examiner: "Examiner", checks: int) -> None:
    """On the terminal, as soon as it is known that a slow core takes minutes."""
    line = examiner.slow(checks)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if line and reporter is not None:
        reporter.write_line(line, yellow=True)


def again(check: "Check", counts: ConformanceCounts, config: pytest.Config) -> str:
    """The command that runs this check on the same examples and nothing else."""
    words = [f'pytest "tests/forensics/test_conformance.py::{check.name}"']
    if config.getoption("plant_fault"):
        words.append(f"--plant-fault {config.getoption('plant_fault')}")
    else:
        words.append(f"--target={counts.target}")
    if counts.profile != "ci":
        words.append(f"--hypothesis-profile {counts.profile}")
    if counts.seed:
        words.append(f"--hypothesis-seed={counts.seed}")
    if config.getoption("gpu"):
        words.append("--gpu")
    return " ".join(words)


def test_values_are_within_their_bound(verify: Callable[[], None]) -> None:
    """Against the float64 truth of the same rounded inputs, within what FP32 can promise."""
    verify()


def test_result_is_fp32_or_wider(verify: Callable[[], None]) -> None:
    """Whatever the input format: a result in bf16 is a loss by itself."""
    verify()


def test_property_holds(verify: Callable[[], None]) -> None:
    """Exact statements: no tolerance."""
    verify()


def test_another_way_of_calling_changes_nothing(verify: Callable[[], None]) -> None:
    """Another memory layout, mask dtype or grad mode, a second call: the same result."""
    verify()


def test_edge_of_the_contract(verify: Callable[[], None]) -> None:
    """NaN at a real token, ids outside the vocabulary, a missing gradient, one too many."""
    verify()


def test_pinned_example(verify: Callable[[], None]) -> None:
    """Inputs that broke somebody's core."""
    verify()
