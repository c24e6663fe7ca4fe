"""The sweep that all tests of this folder look at: run once, resumed where it was stopped."""

from typing import TYPE_CHECKING

import pytest

from precision_lib.matrix import COUNTERFACTUALS, MATRIX, TWIN, PrecisionConfig, load_matrix
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.plugin.sweep_outcome import Outcome
    from precision_lib.sweep.executors import Resources
    from precision_lib.sweep.plan import SweepPlan

#: pytest's own exit code for a usage error.
USAGE = 4


def seeds_of(config: pytest.Config) -> list[int]:
    """Three seeds from --seed on, two with --quick."""
    first, count = config.getoption("seed"), 2 if config.getoption("quick") else 3
    return list(range(first, first + count))


def configurations_of(config: pytest.Config) -> tuple[PrecisionConfig, ...]:
    """The matrix, with --counterfactuals the demotions too, and the configurations of --matrix."""
    own = config.getoption("matrix")
    demotions = COUNTERFACTUALS if config.getoption("counterfactuals") else ()
    return (*MATRIX, *demotions, *(load_matrix(own) if own else ()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A parameter per cell; names alone, so that collecting imports neither torch nor a model."""
    if "cell_name" in metafunc.fixturenames:
        names = [c.name for c in (TWIN, *configurations_of(metafunc.config))]
        cells = [f"{name}-seed-{s}" for s in seeds_of(metafunc.config) for name in names]
        metafunc.parametrize("cell_name", cells)


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config, device: str) -> "SweepPlan":
    """What is run: the matrix and the configurations of --matrix, in a directory of its own."""
    from precision_lib.sweep import budget
    from precision_lib.sweep.plan import ModelNames, plan_sweep

    option = pytestconfig.getoption
    if option("plant_fault"):
        pytest.exit(
            "--plant-fault breaks this process, and the runs of a sweep are others: leave it out",
            returncode=USAGE,
        )
    return plan_sweep(
        budget.QUICK if option("quick") else budget.WHOLE,
        configurations_of(pytestconfig),
        seeds_of(pytestconfig),
        budget.sweep_settings(quick=option("quick")),
        ModelNames(option("model"), option("reward_model"), None, device),
        option("matrix"),
    )


@pytest.fixture(scope="session")
def resources(pytestconfig: pytest.Config) -> "Resources":
    """Who runs the cells, and how many at once."""
    from precision_lib.sweep.events import ExecutorError
    from precision_lib.sweep.executors import Resources

    try:
        return Resources(pytestconfig.getoption("executor"), pytestconfig.getoption("jobs"))
    except ExecutorError as error:
        pytest.exit(str(error), returncode=USAGE)


@pytest.fixture(scope="session")
def outcome(
    pytestconfig: pytest.Config, plan: "SweepPlan", resources: "Resources", recorder: Recorder
) -> "Outcome":
    """The sweep's record, once every cell has been run; its progress goes to the terminal."""
    from precision_lib.models.loading import CheckpointError, NoDeviceError
    from precision_lib.plugin.sweep_outcome import run
    from precision_lib.sweep.events import ExecutorError
    from precision_lib.sweep.plan import PlanError
    from precision_lib.training.state import StateError
    from precision_lib.training.summary import SummaryError

    refused = (CheckpointError, NoDeviceError, ExecutorError, PlanError, StateError, SummaryError)
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled():  # type: ignore[union-attr]
            return run(plan, resources, recorder, fresh=pytestconfig.getoption("fresh"))
    except refused as error:
        pytest.exit(str(error), returncode=USAGE)
