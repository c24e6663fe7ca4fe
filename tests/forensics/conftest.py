"""The models, the trajectories and the studies that a run shares; a parameter per configuration."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from precision_lib.matrix import all_configurations
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.h1.study import H1Study
    from precision_lib.forensics.h2.study import H2Study
    from precision_lib.forensics.h3.study import H3Study
    from precision_lib.forensics.h4.study import H4Study
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


@pytest.fixture(scope="session")
def h1_study(main_job: "MainJob") -> "H1Study":
    """H1 over the probe of this run."""
    return main_job.h1


@pytest.fixture(scope="session")
def h2_study(main_job: "MainJob") -> "H2Study":
    """H2 over the frozen trajectories."""
    return main_job.h2


@pytest.fixture(scope="session")
def h3_study(main_job: "MainJob") -> "H3Study":
    """H3 over the frozen trajectories."""
    return main_job.h3


@pytest.fixture(scope="session")
def h4_study(main_job: "MainJob") -> "H4Study":
    """H4 over long sequences of its own."""
    return main_job.h4
