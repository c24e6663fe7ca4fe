"""The models, the trajectories and the studies that a run shares; a parameter per configuration."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from precision_lib.matrix import all_configurations
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.models.loading import Checkpoint
    from precision_lib.phases.main_job import MainJob
    from precision_lib.plugin.keeping import Keep

#: pytest's own exit code for a usage error.
USAGE = 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "configuration" in metafunc.fixturenames:
        configurations = all_configurations(metafunc.config.getoption("matrix"))
        metafunc.parametrize("configuration", configurations, ids=lambda c: c.name)


@pytest.fixture
def keep(recorder: Recorder, record_property: Callable[[str, object], None]) -> "Keep":
    """Put a cell into the record, and its figures into the JUnit file."""
    from precision_lib.plugin.keeping import keeper

    return keeper(recorder, record_property)


@pytest.fixture(scope="session")
def main_job(pytestconfig: pytest.Config, recorder: Recorder) -> "MainJob":
    """The main job of this run; a study is opened when a test first asks for one."""
    from precision_lib.plugin.main_job import main_job

    try:
        return main_job(pytestconfig, recorder)
    except pytest.UsageError as error:
        pytest.exit(str(error), returncode=USAGE)


@pytest.fixture(scope="session")
def checkpoint(main_job: "MainJob") -> "Checkpoint":
    """The FP32 policy."""
    return main_job.pipeline.policy
