"""The probe that all H1 tests of a run share, and one parameter per configuration."""

from typing import TYPE_CHECKING

import pytest

from precision_lib.matrix import all_configurations
from precision_lib.records.context import run_context
from precision_lib.records.record import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.h1_study import Study
    from precision_lib.models.loading import Checkpoint


#: pytest's own exit code for a usage error.
USAGE = 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "configuration" in metafunc.fixturenames:
        configurations = all_configurations(metafunc.config.getoption("matrix"))
        metafunc.parametrize("configuration", configurations, ids=lambda c: c.name)


def say(config: pytest.Config, line: str) -> None:
    """Show a line at once, although output is captured while a fixture runs."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(line)


@pytest.fixture(scope="session")
def checkpoint(pytestconfig: pytest.Config, device: str) -> "Checkpoint":
    """The FP32 checkpoint from which every configuration starts."""
    from precision_lib.models.loading import CheckpointError, load_checkpoint

    try:
        return load_checkpoint(pytestconfig.getoption("model"), device)
    except CheckpointError as error:
        pytest.exit(f"--model: {error}", returncode=USAGE)


@pytest.fixture(scope="session")
def h1_study(
    pytestconfig: pytest.Config, device: str, checkpoint: "Checkpoint", recorder: Recorder
) -> "Study":
    """H1 over the probe of this run; its context goes into the record."""
    from precision_lib.forensics import h1_study, probe

    settings = probe.QUICK if pytestconfig.getoption("quick") else probe.ProbeSettings()
    try:
        probe.check_fits(checkpoint, settings)
    except ValueError as error:
        pytest.exit(f"--model: {error}", returncode=USAGE)
    say(pytestconfig, "sampling responses and scoring policies; the first cell takes a minute ...")
    study = h1_study.open_study(checkpoint, settings, recorder.configurations)
    recorder.context = run_context(device, settings.seed) | study.context()
    return study
