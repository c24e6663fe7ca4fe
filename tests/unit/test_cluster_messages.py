"""What a worker elsewhere says makes the directory that its run made, however the run ends.

Nothing here needs Ray: a worker is a generator of messages, and the driver applies them.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from precision_lib.matrix import get_configuration
from precision_lib.sweep import mirror as mirrors
from precision_lib.sweep.mirror import Mirror, parts_of
from tests.unit.small_pipelines import files_of

if TYPE_CHECKING:
    from precision_lib.sweep.plan import Models
    from precision_lib.training.settings import PPOSettings

KEPT = ("steps.jsonl", "state.safetensors", "summary.json")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> "Models":
    from tests.unit.saved_pipelines import saved_models

    return saved_models(tmp_path_factory.mktemp("models"))


def settings(**changes: Any) -> "PPOSettings":
    from precision_lib.training.settings import PPOSettings

    tiny: dict[str, Any] = {"max_steps": 5, "batch_size": 4, "max_new_tokens": 4}
    return PPOSettings(**tiny | {"checkpoint_every": 2, "evaluation_sequences": 4} | changes)


def said(
    models: "Models",
    wanted: "PPOSettings",
    scratch: Path,
    mirror: Mirror,
    name: str = "fp32_baseline",
    stop_at: int | None = None,
) -> Generator[tuple[str, Any], None, None]:
    """Messages of a worker in ``scratch`` that goes on from ``mirror``; each is applied."""
    from precision_lib.sweep.ray_worker import Job, messages

    scratch.mkdir()
    job = Job(get_configuration(name), wanted, models)

    def stop() -> str | None:
        return "a test" if stop_at is not None and mirror.steps >= stop_at else None

    for kind, value in messages(job, scratch, *mirror.given(), stop):
        mirror.apply(kind, value)
        yield kind, value


def kept(directory: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(directory).items() if name in KEPT}


def summary(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(models: "Models", tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the final weights of an uninterrupted local run."""
    from precision_lib.models.pipeline import load_pipeline
    from precision_lib.training.run import run_events

    directory = tmp_path_factory.mktemp("whole")
    pipeline = load_pipeline(models.model, models.reward_model)
    *_, end = run_events(pipeline, get_configuration("fp32_baseline"), settings(), directory)
    digest: str = end["summary"].weights_sha256
    return digest


def test_mirror_is_the_directory_of_the_run_byte_for_byte(
    models: "Models", whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "PART_BYTES", 1000)
    mirror = Mirror.open(tmp_path / "here")
    kinds = [kind for kind, _ in said(models, settings(), tmp_path / "there", mirror)]
    mirror.close()
    assert kept(mirror.directory) == kept(tmp_path / "there")
    assert set(kept(mirror.directory)) == set(KEPT)
    # A state before the first step, one every second step, one at the end.
    assert [kinds.count(kind) for kind in ("begin", "line", "whole", "end")] == [1, 5, 4, 1]
    assert kinds.count("part") > 3 * 100
    assert summary(mirror.directory)["weights_sha256"] == whole


@pytest.mark.parametrize("after", ["line", "part", "whole"])
def test_lost_worker_is_continued_from_the_last_whole_state(
    after: str, models: "Models", whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "PART_BYTES", 100_000)
    mirror = Mirror.open(tmp_path / "here")
    first = said(models, settings(), tmp_path / "there", mirror)
    for kind, _ in first:
        if kind == after and mirror.steps >= 3:
            break
    first.close()
    mirror.close()
    mirror = Mirror.open(tmp_path / "here")
    *messages, (kind, end) = said(models, settings(), tmp_path / "elsewhere", mirror)
    mirror.close()
    assert messages[0] == ("begin", 4 if after == "whole" else 2)
    assert kind == "end"
    assert end.weights_sha256 == whole
    assert kept(mirror.directory) == kept(tmp_path / "elsewhere")


def test_run_that_is_asked_to_stop_leaves_its_last_step_and_goes_on_locally(
    models: "Models", whole: str, tmp_path: Path
) -> None:
    from precision_lib.models.pipeline import load_pipeline
    from precision_lib.training.run import run_events

    mirror = Mirror.open(tmp_path / "here")
    list(said(models, settings(), tmp_path / "there", mirror, stop_at=3))
    mirror.close()
    assert summary(mirror.directory)["status"] == "interrupted"
    assert kept(mirror.directory) == kept(tmp_path / "there")
    pipeline = load_pipeline(models.model, models.reward_model)
    baseline = get_configuration("fp32_baseline")
    events = list(run_events(pipeline, baseline, settings(), mirror.directory, resume=True))
    assert events[0] == {"kind": "begin", "step": 3}
    assert events[-1]["summary"].weights_sha256 == whole


def test_last_line_of_a_run_that_fails_arrives(
    models: "Models", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from precision_lib.training.failures import KL_EXPLOSION, LIMITS

    never = replace(LIMITS[KL_EXPLOSION], value=-1000.0, patience=2)
    monkeypatch.setitem(LIMITS, KL_EXPLOSION, never)
    mirror = Mirror.open(tmp_path / "here")
    list(said(models, settings(), tmp_path / "there", mirror))
    mirror.close()
    assert summary(mirror.directory)["status"] == KL_EXPLOSION
    assert (mirror.steps, summary(mirror.directory)["last_step"]) == (2, 2)
    assert kept(mirror.directory) == kept(tmp_path / "there")


@pytest.mark.parametrize("name", ["fp32_baseline", "bf16_pure"])
def test_models_that_are_kept_for_the_next_cell_are_left_alone(
    name: str, models: "Models", tmp_path: Path
) -> None:
    from precision_lib.sweep.ray_worker import loaded

    def digest() -> str:
        pipeline, found = loaded(models), hashlib.sha256()
        for model in (pipeline.policy.model, pipeline.reference.model, pipeline.reward.model):
            tensors = [*model.named_parameters(), *model.named_buffers()]
            for key, tensor in tensors:
                found.update(
                    f"{key} {tensor.dtype} {tensor.requires_grad} {model.training}".encode()
                )
                found.update(tensor.detach().numpy().tobytes())
        return found.hexdigest()

    before = digest()
    mirror = Mirror.open(tmp_path / "here")
    list(said(models, settings(max_steps=1), tmp_path / "there", mirror, name))
    mirror.close()
    assert digest() == before


def test_summary_of_a_shorter_run_goes_when_it_is_made_longer(
    models: "Models", whole: str, tmp_path: Path
) -> None:
    mirror = Mirror.open(tmp_path / "here")
    list(said(models, settings(max_steps=2), tmp_path / "there", mirror))
    assert summary(mirror.directory)["status"] == "completed"
    longer = said(models, settings(), tmp_path / "elsewhere", mirror)
    assert next(longer) == ("begin", 2)
    assert not (mirror.directory / "summary.json").exists()
    *_, (_, end) = longer
    mirror.close()
    assert end.weights_sha256 == whole


def test_directory_is_held_against_other_processes(tmp_path: Path) -> None:
    from precision_lib.training.state import StateError

    mirror = Mirror.open(tmp_path)
    with pytest.raises(StateError, match="another process is training"):
        Mirror.open(tmp_path)
    mirror.close()
    Mirror.open(tmp_path).close()


def test_other_release_is_refused(models: "Models", tmp_path: Path) -> None:
    from precision_lib.sweep.ray_worker import Job, messages

    job = Job(get_configuration("fp32_baseline"), settings(), models, version="0.0.0")
    with pytest.raises(ValueError, match=r"driver has precision_lib 0\.0\.0, this node"):
        next(messages(job, tmp_path, b"", b"", lambda: None))
    assert not files_of(tmp_path)


class NobodyAsks:
    """Stands for the handle of a flag that is never raised."""

    def __init__(self) -> None:
        self.wait = self

    def remote(self) -> "NobodyAsks":
        return self

    def future(self) -> "Future[str]":
        return Future()


def test_refusal_is_said_and_not_to_be_tried_again(models: "Models") -> None:
    from precision_lib.sweep.ray_worker import Job, train

    job = Job(get_configuration("fp32_baseline"), settings(max_new_tokens=1000), models)
    (first, who), (second, (text, again)) = train(job, NobodyAsks(), b"")
    assert (first, second) == ("process", "raised")
    assert who.startswith(f"process {os.getpid()} on ")
    assert (text.startswith("ValueError: "), again) == (True, False)


def test_process_in_which_something_unexpected_is_raised_says_it_and_ends(
    models: "Models", monkeypatch: pytest.MonkeyPatch
) -> None:
    from precision_lib.sweep import ray_worker

    def broken(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(ray_worker, "run_events", broken)
    job = ray_worker.Job(get_configuration("fp32_baseline"), settings(), models)
    messages = []
    with pytest.raises(SystemExit):  # noqa: PT012  # what came before it is looked at
        for message in ray_worker.train(job, NobodyAsks(), b""):
            messages.append(message)
    (_, (kind, traceback), end) = messages
    assert kind == "text"
    assert "in broken" in traceback
    assert end == ("raised", ("RuntimeError: device-side assert", True))


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (10, 1), (11, 2), (30, 3)])
def test_parts_are_the_content(size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "PART_BYTES", 10)
    content = bytes(range(size))
    assert b"".join(parts_of(content)) == content
    assert len(list(parts_of(content))) == count


def test_scratch_of_a_killed_process_is_deleted_and_that_of_another_run_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from precision_lib.sweep.ray_worker import SCRATCH, YOUNG_SECONDS, scratch

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "somebody-else").mkdir()
    left, young, link = (tmp_path / f"{SCRATCH}{name}" for name in ("left", "young", "link"))
    link.symlink_to(tmp_path / "somebody-else")
    long_ago = time.time() - 2 * YOUNG_SECONDS
    for directory in (left / "run", young / "run"):
        directory.mkdir(parents=True)
    for directory in (left, link):
        os.utime(directory, (long_ago, long_ago), follow_symlinks=False)
    with scratch() as first:
        os.utime(first.parent, (long_ago, long_ago))
        with scratch() as second:
            assert first.is_dir()
            assert second.is_dir()
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"somebody-else", link.name, young.name}
    assert not files_of(tmp_path / "somebody-else")
