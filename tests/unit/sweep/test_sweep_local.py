"""Cells as processes: in order, few at once, started again when they die, and none left behind.

A small script stands for the trainer, so that a process is there and gone in a moment; how it dies
is told cell by cell.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from precision_lib.matrix import MATRIX
from precision_lib.sweep import local
from precision_lib.sweep.events import FAILED, FINISHED, RETRIED, STARTED, STEPPED, Event
from precision_lib.sweep.local import LOG, RETRIES, default_jobs, run_local, visible_gpus
from precision_lib.sweep.plan import ModelNames, SweepCell, SweepPlan
from precision_lib.training.failures import KL_EXPLOSION
from precision_lib.training.summary import SCHEMA
from tests.unit.sweep import fake_trainer
from tests.unit.sweep_runs import small_plan, summary_of

STEPS = 4
Tell = Callable[..., None]


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tell:
    """Say what the trainer of a cell does, by the cell's name, or of ``all`` others."""
    told: dict[str, dict[str, Any]] = {"all": {}}

    def command(plan: SweepPlan, cell: SweepCell, directory: Path) -> list[str]:
        does: dict[str, Any] = told["all"] | told.get(cell.name, {})
        summary = {"schema": SCHEMA} | asdict(summary_of(cell, **does.pop("ends", {})))
        usual = {"steps": STEPS, "tries": [], "words": [], "deaf": False, "hang": False}
        usual |= {"company": 0, "linger": 0, "diary": str(tmp_path / "diary")}
        specification = json.dumps(usual | {"summary": json.dumps(summary)} | does)
        return [sys.executable, "-S", "-E", fake_trainer.__file__, str(directory), specification]

    monkeypatch.setattr(local, "command", command)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.01)
    return lambda name="all", **does: told.update({name: does})


def diary(tmp_path: Path) -> list[list[str]]:
    """Words of each line: + directory pid gpu threads session at a start, - directory at an end."""
    return [line.split() for line in (tmp_path / "diary").read_text().splitlines()]


def nobody_is_left(tmp_path: Path) -> bool:
    """No process that ever began is there, not even as a zombie."""
    pids = [int(line[2]) for line in diary(tmp_path) if line[0] == "+"]
    assert pids, "nothing was looked at"
    return not any(is_there(pid) for pid in pids)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kinds(events: list[Event], cell: SweepCell) -> list[str]:
    """What happened to a cell, steps that follow each other as one."""
    found = [e.kind for e in events if e.cell == cell]
    return [k for i, k in enumerate(found) if k != STEPPED or found[i - 1] != STEPPED]


def test_a_cell_starts_steps_and_finishes_in_this_order(tell: Tell, tmp_path: Path) -> None:
    plan = small_plan(tmp_path, *MATRIX[:2])
    events = list(run_local(plan, list(plan.cells), jobs=2))
    for cell in plan.cells:
        assert kinds(events, cell) == [STARTED, STEPPED, FINISHED]
        own = [e for e in events if e.cell == cell]
        assert [e.steps for e in own] == sorted(e.steps for e in own)
        assert (own[-1].steps, own[-1].detail) == (STEPS, "completed")
        assert [e.steps for e in own if e.kind == STEPPED][-1] == STEPS
    assert nobody_is_left(tmp_path)


def test_cells_begin_in_the_order_of_the_plan_and_only_those_that_are_given(
    tell: Tell, tmp_path: Path
) -> None:
    plan = small_plan(tmp_path, *MATRIX[:3])
    given = list(plan.cells[1:4])
    events = list(run_local(plan, given, jobs=1))
    assert [e.cell for e in events if e.kind == STARTED] == given
    assert not plan.run_directory(plan.cells[0]).exists()


@pytest.mark.parametrize("jobs", [1, 3])
def test_never_more_than_jobs_run_at_once_and_as_many_when_there_is_work(
    jobs: int, tell: Tell, tmp_path: Path
) -> None:
    """The first ones wait for each other, and all linger until one too many would have begun."""
    tell(company=jobs, linger=0.1)
    plan = small_plan(tmp_path, *MATRIX[:4])
    list(run_local(plan, list(plan.cells), jobs=jobs))
    running, most = 0, 0
    for line in diary(tmp_path):
        running += 1 if line[0] == "+" else -1
        most = max(most, running)
    assert (running, most) == (0, jobs)


def test_a_run_that_ended_by_a_failure_has_finished(tell: Tell, tmp_path: Path) -> None:
    """kl_explosion is a finding, not a crash: it is not tried again."""
    tell(ends={"status": KL_EXPLOSION, "last_step": 2})
    plan = small_plan(tmp_path)
    events = list(run_local(plan, [plan.cells[0]], jobs=1))
    assert events[-1] == Event(FINISHED, plan.cells[0], 2, KL_EXPLOSION)


@pytest.mark.parametrize("how", [1, -signal.SIGKILL], ids=["exit-1", "SIGKILL"])
def test_a_child_that_dies_is_started_again_and_succeeds(
    how: int, tell: Tell, tmp_path: Path
) -> None:
    tell(tries=[how] * RETRIES)
    plan = small_plan(tmp_path)
    cell = plan.cells[0]
    events = list(run_local(plan, [cell], jobs=1))
    again = [STARTED, STEPPED, RETRIED]
    assert kinds(events, cell)[:3] == again
    assert kinds(events, cell)[-1] == FINISHED
    assert sum(e.kind == RETRIED for e in events) == RETRIES
    want = "exit code 1: it said nothing" if how > 0 else "killed by signal 9: it said nothing"
    assert all(e.detail.startswith(want) for e in events if e.kind == RETRIED)


def test_a_child_that_always_dies_fails_with_its_last_words_and_the_others_go_on(
    tell: Tell, tmp_path: Path
) -> None:
    plan = small_plan(tmp_path, MATRIX[0])
    bad = plan.cells[1]
    words = [f"out of luck\nfor the {n} time" for n in ("first", "second", "third")]
    tell(bad.name, tries=[3] * (RETRIES + 1), words=words)
    events = list(run_local(plan, list(plan.cells), jobs=2))
    [failed] = [e for e in events if e.kind == FAILED]
    log = plan.run_directory(bad) / LOG
    assert failed.cell == bad
    assert failed.detail == f"exit code 3: for the third time (log: {log})"
    assert [e.cell for e in events if e.kind == FINISHED] == [plan.cells[0], plan.cells[2]]
    assert log.read_text().splitlines() == "\n".join(words).splitlines(), "a log is continued"


def test_the_words_of_an_earlier_try_are_not_the_reason_of_a_later_one(
    tell: Tell, tmp_path: Path
) -> None:
    tell(tries=[1, -signal.SIGKILL], words=["a stack trace"])
    plan = small_plan(tmp_path)
    events = list(run_local(plan, [plan.cells[0]], jobs=1))
    first, second = (e.detail for e in events if e.kind == RETRIED)
    assert first.startswith("exit code 1: a stack trace")
    assert second.startswith("killed by signal 9: it said nothing")


def test_a_child_that_refused_its_settings_is_not_asked_again(tell: Tell, tmp_path: Path) -> None:
    tell(tries=[4], words=["precision-forensics: no such model"])
    plan = small_plan(tmp_path)
    events = list(run_local(plan, [plan.cells[0]], jobs=1))
    assert events[-1].kind == FAILED
    assert events[-1].detail.startswith("exit code 4: precision-forensics: no such model")
    assert len(diary(tmp_path)) == 1


def until(events: Any, kind: str, count: int) -> None:
    """Take events until so many of a kind have come."""
    for event in events:
        count -= event.kind == kind
        if not count:
            return
    pytest.fail(f"it ended before {kind}")


def test_a_reason_to_stop_stops_all_children_and_starts_no_other(
    tell: Tell, tmp_path: Path
) -> None:
    tell(hang=True)
    plan = small_plan(tmp_path, *MATRIX[:4])
    reasons: list[str] = []
    events = run_local(plan, list(plan.cells), 2, lambda: reasons[0] if reasons else None)
    until(events, STEPPED, 2)
    reasons.append("SIGTERM")
    assert [e.kind for e in events if e.kind != STEPPED] == []
    assert Counter(line[0] for line in diary(tmp_path)) == {"+": 2, "-": 2}, "asked, not killed"
    assert nobody_is_left(tmp_path)


def test_when_nobody_takes_the_events_any_more_all_children_are_stopped(
    tell: Tell, tmp_path: Path
) -> None:
    tell(hang=True)
    plan = small_plan(tmp_path, *MATRIX[:4])
    events = run_local(plan, list(plan.cells), jobs=2)
    until(events, STEPPED, 2)
    assert not nobody_is_left(tmp_path)
    events.close()  # type: ignore[attr-defined]
    assert nobody_is_left(tmp_path)


def test_a_child_that_does_not_stop_is_killed_after_its_grace(
    tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.1)
    tell(hang=True, deaf=True)
    plan = small_plan(tmp_path)
    events = run_local(plan, list(plan.cells), jobs=2)
    until(events, STEPPED, 2)
    events.close()  # type: ignore[attr-defined]
    assert [line[0] for line in diary(tmp_path)] == ["+", "+"], "killed, not stopped"
    assert nobody_is_left(tmp_path)


def test_an_interrupt_while_children_are_waited_for_leaves_none_of_them(
    tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C, before the first child has stopped."""
    whole = subprocess.Popen.wait

    def wait(self: Any, timeout: float | None = None) -> int:
        if timeout is not None:
            raise KeyboardInterrupt
        return whole(self)

    tell(hang=True, deaf=True)
    plan = small_plan(tmp_path)
    events = run_local(plan, list(plan.cells), jobs=2)
    until(events, STEPPED, 2)
    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        events.close()  # type: ignore[attr-defined]
    assert nobody_is_left(tmp_path)


def test_gpus_are_dealt_evenly(tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four at once on two GPUs, and each of those that come later takes the place of one."""
    monkeypatch.setattr(local, "visible_gpus", lambda _device: ["5", "GPU-a"])
    tell(company=4)
    plan = small_plan(tmp_path, *MATRIX[:4], models=ModelNames(device="cuda"))
    list(run_local(plan, list(plan.cells), jobs=4))
    gpus = [line[3] for line in diary(tmp_path) if line[0] == "+"]
    assert sorted(gpus[:4]) == ["5", "5", "GPU-a", "GPU-a"]
    assert len(gpus) == 6
    running: Counter[str] = Counter()
    for line in diary(tmp_path):
        [gpu] = [x[3] for x in diary(tmp_path) if x[:2] == ["+", line[1]]]
        running[gpu] += 1 if line[0] == "+" else -1
        assert running[gpu] <= 2


def test_without_gpus_children_see_what_the_sweep_sees(
    tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    plan = small_plan(tmp_path)
    list(run_local(plan, [plan.cells[0]], jobs=1))
    assert diary(tmp_path)[0][3:5] == ["7", "1"], "one thread each unless the user says otherwise"


def test_a_ctrl_c_at_the_terminal_does_not_reach_the_children_by_itself(
    tell: Tell, tmp_path: Path
) -> None:
    """It would end them in the middle of a step that the sweep lets them finish."""
    plan = small_plan(tmp_path)
    list(run_local(plan, list(plan.cells), jobs=2))
    assert {line[5] for line in diary(tmp_path) if line[0] == "+"} == {"own"}


@pytest.mark.parametrize(
    ("device", "chosen", "count", "names"),
    [
        ("cpu", None, 2, []),
        ("cuda", None, 2, ["0", "1"]),
        ("cuda", "3, GPU-b", 2, ["3", "GPU-b"]),
        ("cuda", "", 0, []),
        ("cuda", "-1", 0, []),
        ("cuda:1", None, 2, []),  # dealt GPUs, each child would have a cuda:0 and nothing else
    ],
)
def test_visible_gpus_are_those_that_the_user_chose(
    device: str, chosen: str | None, count: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus(device) == names


@pytest.mark.parametrize(
    ("device", "gpus", "threads", "jobs"),
    [
        ("cpu", 0, "1", 20),
        ("cpu", 0, "3", 6),
        ("cpu", 0, "99", 1),
        ("cuda", 1, "1", 8),
        ("cuda", 4, "1", 20),
        ("cuda:1", 0, "1", 8),
    ],
)
def test_by_default_a_core_or_an_eighth_of_a_gpu_runs_a_cell(
    device: str, gpus: int, threads: str, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(20)))
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert default_jobs(device, gpus) == jobs
