"""Conformance of a PPO core, the built-in one or that of --target, in every region and format.

Thin callers of ``precision_lib.conformance``, where the checks and what they say stand.
"""

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from precision_lib.plugin import known
from precision_lib.record.conformance import ConformanceCounts
from precision_lib.record.context import run_context
from precision_lib.record.recorder import Recorder
from precision_lib.targets import Target

if TYPE_CHECKING:
    from precision_lib.conformance.checks import Check


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from precision_lib.conformance.checks import checks

    mine = [check for check in checks() if check.test == metafunc.function.__name__]
    marked = [
        pytest.param(check, id=check.id, marks=known.marks(metafunc.config, check.name))
        for check in mine
    ]
    metafunc.parametrize("check", marked)


@pytest.fixture(scope="module")
def counts(
    pytestconfig: pytest.Config, target: Target, recorder: Recorder, device: str
) -> ConformanceCounts:
    """What the record says about this run's conformance checks, and which examples they draw."""
    from hypothesis import settings

    profile = settings.get_current_profile_name()
    asked = pytestconfig.getoption("hypothesis_seed")
    seed = 0 if profile == "ci" else secrets.randbelow(2**31)
    seed = int(asked) if asked and asked != "random" else seed
    counts = ConformanceCounts(
        target.name, target.not_offered, profile, seed, version=target.version
    )
    if pytestconfig.getoption("target"):
        from precision_lib.conformance.in_rl_terms import measure

        counts.consequences = measure(target.functions)
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
    device: str,
    record_property: Callable[[str, object], None],
) -> Callable[[], None]:
    """Run the check; its counts go into the record, its failure is shown without a traceback.

    A function that ends the device ends the run, so that no other is blamed for it.
    """
    from hypothesis import settings

    from precision_lib.conformance.failure import ConformanceFailure, DeviceLostError
    from precision_lib.conformance.runner import Outcome, on_device, run
    from precision_lib.conformance.written_case import read_case

    expected = known.entry(pytestconfig, check.name)
    pinned = [read_case(expected.input)] if expected is not None and expected.input else []

    def verified() -> None:
        function = target.functions.get(check.function)
        if function is None:
            pytest.skip(f"{check.function} is not offered by {target.name}")
        found: Outcome | ConformanceFailure
        try:
            moved = on_device(check.function, function, device)
            found = run(check, moved, settings(), counts.seed, pinned)
        except ConformanceFailure as failure:
            found = failure
        except DeviceLostError as lost:
            found, request.session.shouldfail = lost.failure, str(lost)
        counts.add(check, found)
        if isinstance(found, ConformanceFailure):
            counts.known += [check.name] if expected is not None else []
            record_property("worst_over_limit", found.times)
            command = again(check, counts, pytestconfig)
            pytest.fail(f"{found}\n  again: {command}", pytrace=False)
        record_property("compared", found.compared)
        record_property("worst_over_limit", found.worst)

    return verified


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


def test_pinned_example(verify: Callable[[], None]) -> None:
    """Inputs that broke somebody's core."""
    verify()
