"""A run that was stopped, by whatever, continues to the bits of one that was not."""

import errno
import re
import resource
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

from precision_lib.jsonio import append_line
from precision_lib.training.update import Updates, update
from tests.unit.small_pipelines import files_of
from tests.unit.small_runs import (
    at_call,
    check_ended,
    next_step,
    step_lines,
    stored_summary,
    train,
    without_time,
)

#: Everything that a state has to hold: Adam's moments, the adaptive coefficient, counters.
ADAPTIVE: dict[str, Any] = {"target_kl": 0.01, "kl_horizon": 8, "epochs": 2}


def skipping(*arguments: Any) -> Updates:
    """The update of a PPO step; the first gradient of step 1 is not finite."""
    _, weights, *_, step, _ = arguments
    if step == 1:
        real = weights.collect_gradient

        def overflow() -> None:
            real()
            weights.gradient[0] = torch.inf

        weights.collect_gradient = at_call(0, real, overflow)
    try:
        return update(*arguments)
    finally:
        vars(weights).pop("collect_gradient", None)


@pytest.fixture(autouse=True)
def one_update_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precision_lib.training.trainer.update", skipping)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a run that nobody stopped, by configuration."""
    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            train(made[name], name, **ADAPTIVE)
            lines = step_lines(made[name])
            assert [line["skipped_updates"] for line in lines] == [0, 1, 0, 0]
            assert len({line["kl_coefficient"] for line in lines}) == 4
        return made[name]

    return directory


def check_same(directory: Path, whole: Path) -> None:
    """All that is left of the two runs is alike, but for the time that they took."""
    check_ended(directory, "completed", "^$", 4)
    assert without_time(step_lines(directory)) == without_time(step_lines(whole))
    got, want = stored_summary(directory), stored_summary(whole)
    for summary in (got, want):
        for name in ("step_seconds", "tokens_per_second"):
            summary["final"].pop(name)
        summary.pop("seconds")
        summary.pop("context")
    assert got == want
    assert got["skipped_updates"] == 1


@pytest.mark.parametrize(
    ("name", "stopped"),
    [("fp32_baseline", 0), ("fp32_baseline", 1), ("fp32_baseline", 2), ("bf16_pure", 3)],
)
def test_run_that_was_asked_to_stop_continues_to_the_same_bits(
    name: str, stopped: int, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    train(tmp_path, name, stop_before=stopped, **ADAPTIVE)
    check_ended(tmp_path, "interrupted", f"^stopped by a test before step {stopped}$", stopped)
    train(tmp_path, name, resume=True, **ADAPTIVE)
    check_same(tmp_path, whole(name))


def fail_at(monkeypatch: pytest.MonkeyPatch, place: str, call: int, error: Exception) -> None:
    """Raise ``error`` at a call of a function of the training package."""

    def failing(*_arguments: Any, **_options: Any) -> Any:
        raise error

    path = f"precision_lib.training.{place}"
    monkeypatch.setattr(path, at_call(call, resolve_name(path), failing))


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
FULL = OSError(errno.ENOSPC, "No space left on device")
#: Where it happens, at which call; the error; how many lines and the state of which step are left.
#: Before the first update of a step the weights are those of the step, after it they are not.
#: A step whose line could not be written has no state.
FAULTS = [
    ("rollout.forward", 4, CPU, 1, 1),
    ("trainer.damage", 3, MemoryError(), 3, 3),
    ("update.policy_loss", 12, CPU, 3, 3),
    ("weights.Weights.step", 8, CUDA, 2, 2),
    ("weights.Weights.step", 12, CPU, 3, 2),
    ("trainer.explained_variance", 3, MemoryError(), 3, 2),
    ("run.append_line", 0, FULL, 0, 0),
    ("run.append_line", 2, FULL, 2, 2),
    ("run.write_state", 1, FULL, 2, 2),
]


@pytest.mark.parametrize(
    ("place", "call", "error", "lines", "state"), FAULTS, ids=[f"{f[0]}-{f[1]}" for f in FAULTS]
)
def test_run_that_had_no_room_left_continues_to_the_same_bits(
    place: str,
    call: int,
    error: Exception,
    lines: int,
    state: int,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No memory, or no disk: while the disk is full for one file there may be room for others."""
    with monkeypatch.context() as patch:
        fail_at(patch, place, call, error)
        train(tmp_path, **ADAPTIVE)
    status = "interrupted" if error is FULL else "out_of_memory"
    check_ended(tmp_path, status, re.escape(str(error)), lines)
    assert next_step(tmp_path, **ADAPTIVE) == state
    train(tmp_path, resume=True, **ADAPTIVE)
    check_same(tmp_path, whole("fp32_baseline"))


def test_resume_on_a_full_disk_changes_nothing_that_a_later_one_needs(
    whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "trainer.explained_variance", 3, MemoryError())
        train(tmp_path, **ADAPTIVE)
    assert next_step(tmp_path, **ADAPTIVE) == 2
    for place, lines in (("directory.write_text", 3), ("run.write_state", 2)):
        with monkeypatch.context() as patch:
            fail_at(patch, place, 0, FULL)
            train(tmp_path, resume=True, stop_before=0, **ADAPTIVE)
        assert stored_summary(tmp_path)["status"] == "interrupted"
        assert len(step_lines(tmp_path)) == lines, "those behind the state go when they can"
    train(tmp_path, resume=True, **ADAPTIVE)
    check_same(tmp_path, whole("fp32_baseline"))


def test_summary_that_cannot_be_written_is_an_error_and_comes_again(
    whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "run.write_summary", 0, FULL)
        with pytest.raises(OSError, match="No space left on device"):
            train(tmp_path, **ADAPTIVE)
    assert not (tmp_path / "summary.json").exists()
    train(tmp_path, resume=True, **ADAPTIVE)
    check_same(tmp_path, whole("fp32_baseline"))


def test_line_that_does_not_fit_leaves_nothing_of_it(tmp_path: Path) -> None:
    """A real limit of the system, which writes what fits before it refuses the rest."""
    path, line = tmp_path / "steps.jsonl", {"step": 0, "text": "x" * 1000}
    append_line(path, line)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_line(path, line | {"step": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert step_lines(tmp_path) == [line]
    append_line(path, line | {"step": 1})
    assert step_lines(tmp_path) == [line, line | {"step": 1}]


@pytest.mark.parametrize("name", ["fp32_baseline", "bf16_pure"])
def test_completed_run_that_is_made_longer_is_the_longer_run(
    name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    short = train(tmp_path, name, max_steps=1, **ADAPTIVE)
    assert short.status == "completed"
    assert short.evaluation
    train(tmp_path, name, resume=True, **ADAPTIVE)
    check_same(tmp_path, whole(name))


def test_completed_run_is_not_touched_by_a_resume(whole: Callable[[str], Path]) -> None:
    directory = whole("fp32_baseline")
    before = files_of(directory)
    for changes in ({}, {"max_steps": 2}, {"checkpoint_every": 1}, {"evaluation_sequences": 4}):
        summary = train(directory, resume=True, **ADAPTIVE | changes)
        assert summary.last_step == 4
        assert files_of(directory) == before


def test_numbers_that_train_nothing_may_be_others(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """How often a state is written, and how long the run will be."""
    train(tmp_path, stop_before=1, max_steps=9, checkpoint_every=1, **ADAPTIVE)
    train(tmp_path, resume=True, checkpoint_every=3, **ADAPTIVE)
    assert without_time(step_lines(tmp_path)) == without_time(step_lines(whole("fp32_baseline")))


def test_resuming_nothing_begins(whole: Callable[[str], Path], tmp_path: Path) -> None:
    train(tmp_path / "new", resume=True, **ADAPTIVE)
    check_same(tmp_path / "new", whole("fp32_baseline"))
