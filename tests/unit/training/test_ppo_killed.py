"""Runs that are killed, or write to a full disk, at every place where that can hurt.

Children of one process that has loaded everything: each trains in a directory of its own, with
something that goes wrong on the way. Here is looked at what they left, and they are continued.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib.training.weights import Weights
from tests.unit.small_runs import (
    at_call,
    check_ended,
    next_step,
    pipeline,
    step_lines,
    stored_summary,
    train,
    without_time,
)

ROOT = Path(__file__).parents[3]


def kill_now(*_arguments: Any, **_options: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_step() -> None:
    """Between the two updates of step 2."""
    Weights.step = at_call(5, Weights.step, kill_now)  # type: ignore[method-assign]  # a fault


def before_the_state() -> None:
    """The lines of steps 0 and 1 are written, the state behind them is not begun."""
    patch("write_state", 1, kill_now)


def in_the_state() -> None:
    """The state behind step 1 has its temporary name."""
    os.replace = killing("state.safetensors", 1)


def in_a_line() -> None:
    """Half of the line of step 2 is written."""

    def half(path: Path, _value: Any) -> None:
        with path.open("ab") as file:
            file.write(b'{"step": 2, "reward_m')
        kill_now()

    patch("append_line", 2, half)


def in_the_summary() -> None:
    """All steps are done, the summary has its temporary name."""
    os.replace = killing("summary.json", 0)


def patch(name: str, number: int, instead: Callable[..., Any]) -> None:
    module = import_module("precision_lib.training.run")
    setattr(module, name, at_call(number, getattr(module, name), instead))


def killing(name: str, number: int) -> Any:
    """``os.replace``, but the file of that name is not renamed for the n-th time, from 0."""
    real, last = os.replace, at_call(number, os.replace, kill_now)

    def replace(source: Any, target: Any) -> None:
        (last if Path(target).name == name else real)(source, target)

    return replace


def disk_full_at(size: int) -> Callable[[], None]:
    """No file may grow beyond ``size`` bytes."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


#: The first state takes 100 KB, one with Adam's moments 300 KB.
FAULTS: dict[str, Callable[[], None]] = {
    "in_a_step": in_a_step,
    "before_the_state": before_the_state,
    "in_the_state": in_the_state,
    "in_a_line": in_a_line,
    "in_the_summary": in_the_summary,
    "disk_full_for_states": disk_full_at(200_000),
    "disk_full_for_anything": disk_full_at(1_000),
}
CHILDREN = [("bf16_pure", "in_a_step"), *(("fp32_baseline", fault) for fault in FAULTS)]
KILLED = [child for child in CHILDREN if not child[1].startswith("disk")]


def run_children(directory: Path, threads: int) -> None:
    """Train with each fault; print how each child ended."""
    torch.set_num_threads(threads)
    pipeline()
    for name, fault in CHILDREN:
        child = os.fork()
        if child == 0:
            FAULTS[fault]()
            summary = train(directory / name / fault, name)
            os._exit(0 if summary.status == "interrupted" else 1)
        print(name, fault, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))  # noqa: T201


Made = tuple[Path, dict[tuple[str, str], int]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Where the children trained, and the exit code of each."""
    directory = tmp_path_factory.mktemp("children")
    code = (
        "from pathlib import Path; from tests.unit.training import test_ppo_killed as t; "
        f"t.run_children(Path({str(directory)!r}), {torch.get_num_threads()})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ended = (line.split() for line in done.stdout.splitlines())
    return directory, {(name, fault): int(code) for name, fault, code in ended}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a run that nothing happened to."""

    @cache
    def make(name: str) -> Path:
        directory = tmp_path_factory.mktemp(name)
        train(directory, name)
        return directory

    return make


def check_continued(directory: Path, name: str, whole: Path) -> None:
    train(directory, name, resume=True)
    check_ended(directory, "completed", "^$", 4)
    assert without_time(step_lines(directory)) == without_time(step_lines(whole))
    got, want = stored_summary(directory), stored_summary(whole)
    for figure in ("weights_sha256", "evaluation", "best", "identity"):
        assert got[figure] == want[figure]


#: Whole lines, the step of the state, and whether a temporary file is left.
LEFT = {
    "in_a_step": (2, 2, False),
    "before_the_state": (2, 0, False),
    "in_the_state": (2, 0, True),
    "in_a_line": (2, 2, False),
    "in_the_summary": (4, 4, True),
}


@pytest.mark.parametrize(("name", "fault"), KILLED)
def test_killed_run_continues_to_the_same_bits(
    name: str, fault: str, made: Made, whole: Callable[[str], Path]
) -> None:
    here = made[0] / name / fault
    assert made[1][name, fault] == -signal.SIGKILL
    lines, step, debris = LEFT[fault]
    assert not (here / "summary.json").exists()
    text = (here / "steps.jsonl").read_text()
    assert text.count("\n") == lines
    assert text.endswith("\n") == (fault != "in_a_line")
    assert next_step(here, name) == step
    assert any(path.name.startswith(".s") for path in here.iterdir()) == debris
    check_continued(here, name, whole(name))


def test_run_on_a_full_disk_is_interrupted_and_continues_where_there_is_room(
    made: Made, whole: Callable[[str], Path]
) -> None:
    """The state of step 2 does not fit; what was written before is whole, and the summary."""
    here = made[0] / "fp32_baseline" / "disk_full_for_states"
    assert made[1]["fp32_baseline", "disk_full_for_states"] == 0
    check_ended(here, "interrupted", "cannot write: .*state.safetensors", 2)
    assert next_step(here) == 0
    check_continued(here, "fp32_baseline", whole("fp32_baseline"))


def test_disk_too_full_for_anything_leaves_nothing_half_written(
    made: Made, whole: Callable[[str], Path]
) -> None:
    here = made[0] / "fp32_baseline" / "disk_full_for_anything"
    assert made[1]["fp32_baseline", "disk_full_for_anything"] == 0
    assert [path.name for path in here.iterdir()] == [".lock"]
    check_continued(here, "fp32_baseline", whole("fp32_baseline"))
