"""What an actor elsewhere answers makes the directory that its run made, however the run ends.

Nothing here needs Ray: the actor is an object, and the test writes what it answers.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from precision_lib import __version__
from precision_lib.matrix import get_configuration
from tests.unit.small_pipelines import files_of

if TYPE_CHECKING:
    from precision_lib.sweep.plan import ModelNames
    from precision_lib.training.settings import PPOSettings

REFERENCE_RUN = get_configuration("fp32_baseline")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> "ModelNames":
    from tests.unit.sweep.saved_pipelines import saved_models

    return saved_models(tmp_path_factory.mktemp("models"))


def settings(**changes: Any) -> "PPOSettings":
    from precision_lib.training.settings import PPOSettings

    tiny: dict[str, Any] = {"max_steps": 5, "batch_size": 4, "max_new_tokens": 4}
    return PPOSettings(**tiny | {"checkpoint_every": 2, "evaluation_sequences": 4} | changes)


def run_elsewhere(
    models: "ModelNames",
    wanted: "PPOSettings",
    here: Path,
    lost_at: tuple[str, int] | None = None,
    stopped_at: int | None = None,
) -> list[tuple[str, int]]:
    """(kind, steps) of what an actor answers that goes on from ``here``, which is kept up."""
    from precision_lib.sweep.ray_worker import RemoteCell, read_files, write_files

    cell, answers = RemoteCell(), [("", -1)]
    cell.start(__version__, REFERENCE_RUN, wanted, models, read_files(here))
    while answers[-1][0] != "end" and (lost_at is None or answers[-1] != lost_at):
        reason = "a test" if answers[-1][1] == stopped_at else None
        kind, steps, files = cell.advance(reason)
        answers.append((kind, steps))
        if files is not None:
            write_files(here, files)
    if lost_at:  # the actor's process would be gone
        cell.events.close()
        cell.scratch.cleanup()
    assert not cell.directory.exists()
    return answers[1:]


def manifests(*steps: int) -> set[str]:
    return {f"weights_{side}_{n:06d}.json" for side in ("trainer", "rollout") for n in steps}


def summary(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(models: "ModelNames", tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the final weights of an uninterrupted local run."""
    from precision_lib.models.pipeline import load_pipeline
    from precision_lib.training.events import Ended
    from precision_lib.training.run import run_events

    pipeline = load_pipeline(models.model, models.reward_model)
    *_, end = run_events(pipeline, REFERENCE_RUN, settings(), tmp_path_factory.mktemp("whole"))
    assert isinstance(end, Ended)
    return end.summary.weights_sha256


def test_lost_actor_is_continued_from_the_last_state(
    models: "ModelNames", whole: str, tmp_path: Path
) -> None:
    run_elsewhere(models, settings(), tmp_path, lost_at=("step", 3))
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == 2
    answers = run_elsewhere(models, settings(), tmp_path)
    assert [answers[0], answers[-1]] == [("begin", 2), ("end", 5)]
    files = set(files_of(tmp_path))
    assert files - manifests(0, 2, 4, 5) == {"steps.jsonl", "state.safetensors", "summary.json"}
    assert files > manifests(0, 2, 4, 5)
    assert summary(tmp_path)["weights_sha256"] == whole


def test_run_that_is_asked_to_stop_keeps_its_last_step_and_goes_on_locally(
    models: "ModelNames", whole: str, tmp_path: Path
) -> None:
    from precision_lib.models.pipeline import load_pipeline
    from precision_lib.training.events import Began, Ended
    from precision_lib.training.run import run_events

    assert run_elsewhere(models, settings(), tmp_path, stopped_at=3)[-1] == ("end", 3)
    assert summary(tmp_path)["status"] == "interrupted"
    assert "stopped by a test" in summary(tmp_path)["reason"]
    pipeline = load_pipeline(models.model, models.reward_model)
    begin, *_, end = run_events(pipeline, REFERENCE_RUN, settings(), tmp_path, resume=True)
    assert begin == Began(3)
    assert isinstance(end, Ended)
    assert end.summary.weights_sha256 == whole


def test_summary_of_a_shorter_run_goes_when_it_is_made_longer(
    models: "ModelNames", whole: str, tmp_path: Path
) -> None:
    run_elsewhere(models, settings(max_steps=2), tmp_path)
    assert summary(tmp_path)["status"] == "completed"
    run_elsewhere(models, settings(), tmp_path, lost_at=("state", 4))
    files = set(files_of(tmp_path))
    assert files - manifests(0, 2, 4) == {"steps.jsonl", "state.safetensors"}
    run_elsewhere(models, settings(), tmp_path)
    assert summary(tmp_path)["weights_sha256"] == whole


def test_another_release_is_refused(models: "ModelNames") -> None:
    from precision_lib.sweep.ray_worker import RemoteCell

    with pytest.raises(ValueError, match=r"driver has precision_lib 0\.0\.0, this node"):
        RemoteCell().start("0.0.0", REFERENCE_RUN, settings(), models, {})
