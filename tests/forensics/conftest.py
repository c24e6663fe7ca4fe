"""The probe that all H1 tests of a run share, and one parameter per configuration."""

from typing import TYPE_CHECKING

import pytest

from precision_lib.matrix import all_configurations
from precision_lib.records.context import run_context
from precision_lib.records.record import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.h1_study import Study
    from precision_lib.models.loading import Checkpoint


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "configuration" in metafunc.fixturenames:
        configurations = all_configurations(metafunc.config.getoption("matrix"))
        metafunc.parametrize("configuration", configurations, ids=lambda c: c.name)


@pytest.fixture(scope="session")
def checkpoint(pytestconfig: pytest.Config, device: str) -> "Checkpoint":
    """The FP32 checkpoint from which every configuration starts."""
    from precision_lib.models.loading import load_checkpoint

    return load_checkpoint(pytestconfig.getoption("model"), device)


@pytest.fixture(scope="session")
def h1_study(
    pytestconfig: pytest.Config, device: str, checkpoint: "Checkpoint", recorder: Recorder
) -> "Study":
    """H1 over the probe of this run; its noise floor and context go into the record."""
    from precision_lib.forensics import h1_study, probe

    settings = probe.QUICK if pytestconfig.getoption("quick") else probe.ProbeSettings()
    study = h1_study.open_study(checkpoint, settings, recorder.configurations)
    recorder.context = run_context(device, settings.seed) | study.context()
    recorder.noise_floors["H1"] = study.noise_floor().as_json()
    return study
