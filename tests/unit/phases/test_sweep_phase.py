"""A sweep whose runs nobody trains: its record, what is run again and what is not."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precision_lib.jsonio import append_line
from precision_lib.matrix import MATRIX, get_configuration
from precision_lib.models.loading import CheckpointError
from precision_lib.phases.sweep import RECORD, run_sweep
from precision_lib.record.files import SCHEMAS, load_sweep
from precision_lib.sweep import progress
from precision_lib.sweep.events import Event
from precision_lib.sweep.plan import Origin, PlanError, SweepCell, SweepPlan
from precision_lib.training.directory import STEPS, alone
from precision_lib.training.failures import INTERRUPTED, KL_EXPLOSION
from precision_lib.training.state import STATE, StateError
from precision_lib.training.summary import SUMMARY
from tests.unit.sweep_runs import KL_COEFFICIENT, ORIGIN, Executor, leave, small_plan

PURE = get_configuration("bf16_pure")


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return small_plan(tmp_path / "sweep", PURE, seeds=(0, 1))


def on_disk(plan: SweepPlan) -> dict[str, Any]:
    """The record, of strict JSON."""
    text = (plan.directory / RECORD).read_text()
    found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    return found


def test_the_record_has_all_that_was_found(plan: SweepPlan) -> None:
    record = run_sweep(plan, Executor(plan))
    found = on_disk(plan)
    assert load_sweep(plan.directory / RECORD) == record
    assert (found["schema"], found["complete"]) == (SCHEMAS["sweep"], True)
    assert found["max_steps"] == 4
    assert (found["failed"], found["not_compared"]) == ({}, "")
    assert found["settings"]["kl_coefficient"] == KL_COEFFICIENT
    assert found["matrix"]["bf16_pure"] == PURE.components
    assert found["models"]["model"] == "embedded"
    assert found["evidence"]["seeds"] == [0, 1]
    assert {c["configuration"] for c in found["evidence"]["cells"]} == {"fp32_twin", "bf16_pure"}
    assert [f"{r['configuration']}-seed-{r['seed']}" for r in found["runs"]] == [
        cell.name for cell in plan.cells
    ]
    for run in found["runs"]:
        assert run["status"] == "completed"
        assert run["commit"] == {"sha": "c"}, "a sweep that goes on may have several"
        assert "context" not in run
        assert run["evaluation"]["final"]["kl_per_sequence"] == 2.0


def test_curves_are_kept_with_six_digits_and_gaps_where_a_step_has_no_figure(
    plan: SweepPlan,
) -> None:
    execute = Executor(plan)
    record = run_sweep(plan, execute)
    curves = record.runs[0].curves
    assert len(curves["reward_mean"]) == 4
    assert curves["kl_sequence_mean"] == (0.0, 0.1, 0.2, 0.3)  # 3 x 0.1 has seventeen digits
    assert curves["entropy_mean"] == (None,) * 4
    steps = plan.run_directory(plan.cells[0]) / STEPS
    append_line(steps, {"step": 4, "reward_mean": float("nan"), "kl_sequence_mean": 1.0})
    last = run_sweep(plan, execute).runs[0].curves["reward_mean"][-1]
    assert last is not None
    assert math.isnan(last)


def test_a_cell_that_crashed_is_named_and_all_others_are_kept(plan: SweepPlan) -> None:
    said: list[str] = []
    record = run_sweep(plan, Executor(plan, crash="bf16_pure-seed-0"), say=said.append)
    assert on_disk(plan)["failed"] == {"bf16_pure-seed-0": "exit code 1: oh no"}
    assert not record.complete
    statuses = [run.status for run in record.runs]
    assert statuses.count("unfinished") == 1
    assert statuses.count("completed") == 5
    assert record.evidence is not None
    assert record.evidence.seeds == (1,)
    assert "bf16_pure-seed-0: retried, exit code 1: oh" in said
    assert "bf16_pure-seed-0: failed, exit code 1: oh no" in said
    assert "bf16_pure-seed-1: completed after 4 steps" in said


def test_the_next_sweep_runs_what_is_missing_and_nothing_else(plan: SweepPlan) -> None:
    run_sweep(plan, Executor(plan, crash="bf16_pure-seed-0"))
    before = mtimes(plan)
    second = Executor(plan)
    record = run_sweep(plan, second)
    assert second.asked == ["bf16_pure-seed-0"]
    assert record.complete
    assert record.failed == {}
    after = mtimes(plan)
    assert len(after) == len(before) + 1
    assert {path: after[path] for path in before} == before
    third = Executor(plan)
    assert run_sweep(plan, third) == record
    assert third.asked == []


def mtimes(plan: SweepPlan) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in plan.directory.rglob(SUMMARY)}


def test_more_seeds_and_more_steps_go_on_from_what_is_there(plan: SweepPlan) -> None:
    run_sweep(plan, Executor(plan))
    wider = small_plan(plan.directory, PURE, seeds=(0, 1, 2))
    execute = Executor(wider)
    run_sweep(wider, execute)
    assert {name.rpartition("-")[2] for name in execute.asked} == {"2"}
    longer = small_plan(plan.directory, PURE, seeds=(0, 1), max_steps=5)
    again = Executor(longer)
    run_sweep(longer, again)
    assert again.asked == [cell.name for cell in longer.cells]


def test_what_ended_by_a_failure_is_not_run_again_and_what_was_interrupted_is(
    plan: SweepPlan,
) -> None:
    leave(plan, plan.cells[2], status=KL_EXPLOSION, last_step=1)
    leave(plan, plan.cells[1], status=INTERRUPTED, last_step=1)
    execute = Executor(plan)
    run_sweep(plan, execute)
    assert set(execute.asked) == {cell.name for cell in plan.cells} - {plan.cells[2].name}


def test_fresh_deletes_the_runs_of_the_plan_and_no_others(plan: SweepPlan) -> None:
    other = small_plan(plan.directory, MATRIX[1], seeds=(0, 1))
    run_sweep(plan, Executor(plan))
    for cell in other.cells:
        leave(other, cell)
    for cell in plan.cells:
        (plan.run_directory(cell) / STATE).write_text("old")
    execute = Executor(plan)
    run_sweep(plan, execute, fresh=True)
    assert execute.asked == [cell.name for cell in plan.cells]
    assert not any((plan.run_directory(cell) / STATE).exists() for cell in plan.cells)
    assert (other.run_directory(other.cells[2]) / SUMMARY).exists()


def test_fresh_does_not_delete_a_run_in_progress(plan: SweepPlan) -> None:
    leave(plan, plan.cells[3])
    directory = plan.run_directory(plan.cells[3])
    with alone(directory), pytest.raises(StateError, match="another process is training in"):
        run_sweep(plan, Executor(plan), fresh=True)
    assert (directory / SUMMARY).exists()


def test_two_sweeps_do_not_run_in_one_directory(plan: SweepPlan) -> None:
    plan.directory.mkdir()
    execute = Executor(plan)
    with alone(plan.directory), pytest.raises(StateError, match="another process is training in"):
        run_sweep(plan, execute)
    assert execute.asked == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: small_plan(d, PURE, seeds=(0, 1), gamma=0.5), "gamma was 1.0 and is 0.5"),
        (lambda d: small_plan(d, PURE, seeds=(0, 1), max_steps=3), "is to have 3"),
    ],
    ids=["settings", "fewer-steps"],
)
def test_a_directory_of_another_sweep_is_refused_before_anything_is_run(
    make: Callable[[Path], SweepPlan], message: str, plan: SweepPlan
) -> None:
    run_sweep(plan, Executor(plan))
    before = on_disk(plan)
    other = make(plan.directory)
    execute = Executor(other)
    with pytest.raises(PlanError, match=message):
        run_sweep(other, execute)
    assert execute.asked == []
    assert on_disk(plan) == before


def test_other_models_are_refused_where_runs_are_missing(plan: SweepPlan) -> None:
    """A sweep that is whole can still be weighed, also with another torch or without a model."""
    other = replace(ORIGIN, torch="9.9")
    run_sweep(plan, Executor(plan, until=4), origin=lambda: ORIGIN)
    execute = Executor(plan)
    with pytest.raises(PlanError, match=r"torch was '2.0' and is '9.9'"):
        run_sweep(plan, execute, origin=lambda: other)
    assert execute.asked == []
    run_sweep(plan, execute, origin=lambda: ORIGIN)
    assert len(execute.asked) == 2
    assert run_sweep(plan, execute, origin=pytest.fail).complete


def test_models_that_cannot_be_loaded_delete_nothing(plan: SweepPlan) -> None:
    def missing() -> Origin:
        raise CheckpointError("no such model")

    run_sweep(plan, Executor(plan))
    before = mtimes(plan)
    with pytest.raises(CheckpointError, match="no such model"):
        run_sweep(plan, Executor(plan), origin=missing, fresh=True)
    assert mtimes(plan) == before


def test_runs_of_two_origins_are_not_compared_whoever_made_them(plan: SweepPlan) -> None:
    """Models on a disk may change while a sweep runs."""

    class Changing(Executor):
        def __call__(self, cells: list[SweepCell]) -> Iterator[Event]:
            yield from super().__call__(cells)
            changed = {"settings": cells[-1].settings.identity, **vars(ORIGIN), "device": "cuda"}
            leave(self.plan, cells[-1], identity=changed)

    record = run_sweep(plan, Changing(plan))
    assert record.complete
    assert record.evidence is None
    assert "device was 'cuda' and is 'cpu'" in record.not_compared


def test_an_interrupted_sweep_has_a_record_of_what_has_ended_by_then(plan: SweepPlan) -> None:
    """Asked to stop, the executor ends early; the first seed is whole, one run of the second is."""
    record = run_sweep(plan, Executor(plan, until=4))
    assert on_disk(plan)["complete"] is False
    assert record.evidence is not None
    assert record.evidence.seeds == (0,)
    assert [run.status for run in record.runs].count("unfinished") == 2


def test_an_exception_leaves_a_record_with_what_failed_before_it_and_stops_the_cells(
    plan: SweepPlan,
) -> None:
    def say(line: str) -> None:
        if line.startswith("bf16_pure-seed-0: failed"):
            raise KeyboardInterrupt

    execute = Executor(plan, crash="bf16_pure-seed-0")
    events: list[Iterator[Event]] = []  # held, so that nothing but the sweep closes them

    def held(cells: list[SweepCell]) -> Iterator[Event]:
        events.append(execute(cells))
        return events[0]

    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, held, say=say)
    assert execute.closed
    found = on_disk(plan)
    assert not found["complete"]
    assert found["failed"] == {"bf16_pure-seed-0": "exit code 1: oh no"}
    assert [run["status"] for run in found["runs"]].count("completed") == 2


def test_lines_that_are_damaged_are_refused_before_anything_is_run(plan: SweepPlan) -> None:
    run_sweep(plan, Executor(plan, until=3))
    append_line(plan.run_directory(plan.cells[0]) / STEPS, {"step": 17})
    execute = Executor(plan)
    with pytest.raises(StateError, match="line 5 is not the line of step 4"):
        run_sweep(plan, execute)
    assert execute.asked == []


def test_runs_are_named_as_their_cells(plan: SweepPlan) -> None:
    """A worker trains the twin as the baseline, and its summary says so."""
    for cell in plan.cells:
        leave(plan, cell, configuration="fp32_baseline")
    record = run_sweep(plan, Executor(plan, until=0))
    names = [f"{run.configuration}-seed-{run.seed}" for run in record.runs]
    assert names == [cell.name for cell in plan.cells]


def test_a_sweep_that_never_began_has_a_record_too(plan: SweepPlan) -> None:
    record = run_sweep(plan, Executor(plan, until=0))
    assert record.evidence is None
    assert record.context.device is not None
    assert record.context.device.device_class == "cpu"
    assert {run.status for run in record.runs} == {"unfinished"}


class Bar:
    """Stands for the one on stderr: counts what it is told."""

    def __init__(self, _desc: str, _unit: str, total: int, *, initial: int) -> None:
        self.total, self.at, self.words = total, initial, ""
        Bar.last = self

    last: "Bar"

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def update(self, steps: int) -> None:
        self.at += steps

    def set_postfix_str(self, words: str) -> None:
        self.words = words


def test_the_bar_counts_the_steps_of_all_cells_and_ends_full(
    plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell was there, one had two steps; one crashes after two of its four, one ends early."""
    monkeypatch.setattr(progress, "progress_bar", Bar)
    leave(plan, plan.cells[0], status=KL_EXPLOSION, last_step=1)
    leave(plan, plan.cells[1], status=INTERRUPTED, last_step=2)
    run_sweep(plan, Executor(plan, until=0))
    assert (Bar.last.at, Bar.last.total) == (4 + 2, 24)
    run_sweep(plan, Executor(plan, crash="bf16_pure-seed-1", explode="bf16_pure-seed-0"))
    assert (Bar.last.at, Bar.last.total) == (24 - 2, 24)
    assert Bar.last.words == "cells: 5 of 6 done, 0 running, 1 failed"
