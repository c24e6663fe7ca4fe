"""The models, the trajectories and the studies that a run shares; a parameter per configuration."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from precision_lib.matrix import all_configurations
from precision_lib.records.context import run_context
from precision_lib.records.record import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.budget import Budget
    from precision_lib.forensics.frozen import Frozen
    from precision_lib.forensics.h1.study import H1Study
    from precision_lib.forensics.h2.study import H2Study
    from precision_lib.forensics.h3.study import H3Study
    from precision_lib.forensics.h4.study import H4Study
    from precision_lib.models.loading import Checkpoint
    from precision_lib.models.pipeline import Pipeline
    from precision_lib.plugin.keeping import Keep


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


@pytest.fixture
def keep(recorder: Recorder, record_property: Callable[[str, object], None]) -> "Keep":
    """Put a cell into the record, and its figures into the JUnit file."""
    from precision_lib.plugin.keeping import keeper

    return keeper(recorder, record_property)


@pytest.fixture(scope="session")
def budget(pytestconfig: pytest.Config) -> "Budget":
    """How much is measured, and the seed of it."""
    from precision_lib.forensics.budget import budget

    return budget(quick=pytestconfig.getoption("quick"), seed=pytestconfig.getoption("seed"))


@pytest.fixture(scope="session")
def pipeline(
    pytestconfig: pytest.Config, device: str, budget: "Budget", recorder: Recorder
) -> "Pipeline":
    """The FP32 models from which every configuration starts; the context names them."""
    from precision_lib.forensics import probe
    from precision_lib.models.loading import CheckpointError
    from precision_lib.models.pipeline import load_pipeline

    option = pytestconfig.getoption
    try:
        loaded = load_pipeline(option("model"), option("reward_model"), device=device)
        probe.check_fits(loaded.policy, budget.probe)
    except CheckpointError as error:
        pytest.exit(f"--model, --reward-model: {error}", returncode=USAGE)
    except ValueError as error:
        pytest.exit(f"--model: {error}", returncode=USAGE)
    policy = {"name": loaded.policy.name, "sha256": loaded.policy.sha256}
    recorder.context = run_context(device, option("seed")) | {
        "checkpoint": policy,
        "budget": "quick" if option("quick") else "whole",
    }
    return loaded


@pytest.fixture(scope="session")
def checkpoint(pipeline: "Pipeline") -> "Checkpoint":
    """The FP32 policy."""
    return pipeline.policy


@pytest.fixture(scope="session")
def trajectories(
    pytestconfig: pytest.Config,
    pipeline: "Pipeline",
    budget: "Budget",
    recorder: Recorder,
    tmp_path_factory: pytest.TempPathFactory,
) -> "Frozen":
    """FP32 trajectories, frozen to disk and read back, with the value head that was used."""
    from precision_lib.forensics.frozen import freeze_and_read

    say(pytestconfig, "freezing trajectories ...")
    frozen = freeze_and_read(pipeline, budget.freeze, tmp_path_factory.mktemp("trajectories"))
    recorder.context |= frozen.context()
    return frozen


@pytest.fixture(scope="session")
def h1_study(
    pytestconfig: pytest.Config, checkpoint: "Checkpoint", budget: "Budget", recorder: Recorder
) -> "H1Study":
    """H1 over the probe of this run; its context goes into the record."""
    from precision_lib.forensics.h1 import study as h1_study

    say(pytestconfig, "H1: sampling responses and scoring policies; the first cell takes a minute")
    study = h1_study.open_study(checkpoint, budget.probe, recorder.configurations)
    recorder.context |= study.context()
    return study


@pytest.fixture(scope="session")
def h2_study(
    pipeline: "Pipeline", trajectories: "Frozen", budget: "Budget", recorder: Recorder
) -> "H2Study":
    """H2 over the frozen trajectories."""
    from precision_lib.forensics.h2.study import open_h2_study

    study = open_h2_study(pipeline.reward, trajectories.shards, budget.freeze.seed)
    recorder.context |= study.context()
    return study


@pytest.fixture(scope="session")
def h3_study(
    pipeline: "Pipeline", trajectories: "Frozen", budget: "Budget", recorder: Recorder
) -> "H3Study":
    """H3 over the frozen trajectories."""
    from precision_lib.forensics.h3.study import open_h3_study

    study = open_h3_study(pipeline.policy, trajectories.head, trajectories.shards, budget.h3)
    recorder.context |= study.context()
    return study


@pytest.fixture(scope="session")
def h4_study(
    pytestconfig: pytest.Config, checkpoint: "Checkpoint", budget: "Budget", recorder: Recorder
) -> "H4Study":
    """H4 over long sequences of its own."""
    from precision_lib.forensics.h4.study import open_h4_study

    say(pytestconfig, "H4: drawing long sequences; the first cell takes a minute ...")
    study = open_h4_study(checkpoint, budget.h4, recorder.configurations)
    recorder.context |= study.context()
    return study
