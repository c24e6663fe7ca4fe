"""The full sweep from end to end: run what is missing, then weigh what there is.

The hazards. A sweep of a night that is looked at in the morning must say which cells failed, why,
and must have kept everything else; one that is begun again must not do what is done. So the cells'
own directories are the only state, a finished cell is never run again unless it is asked for, and
the evidence is made from the directories, whoever filled them.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from precision_lib.jsonio import write_json
from precision_lib.records.context import run_context
from precision_lib.sweep.curves import RunCurves, run_curves
from precision_lib.sweep.events import FAILED, FINISHED, RETRIED, STEPPED, Event
from precision_lib.sweep.evidence import Evidence, TooFewRunsError, weigh
from precision_lib.sweep.plan import SweepCell, SweepPlan, check_same, ended
from precision_lib.training.run import read_lines

SCHEMA = "precision-forensics/sweep/1"
RECORD = "sweep.json"
#: Figures of each step that the record keeps, so that curves can be drawn from it alone.
CURVES = (
    "reward_mean",
    "kl_sequence_mean",
    "entropy_mean",
    "explained_variance",
    "weights_moved_frac",
    "log_ratio_near_zero_frac",
    "log_ratio_nsr",
    "advantage_rms_error",
    "value_stagnation_rate",
    "accum_err_final",
)
Executor = Callable[[list[SweepCell]], Iterable[Event]]


def missing_cells(plan: SweepPlan, *, fresh: bool = False) -> list[SweepCell]:
    """Cells that have to be run. ``fresh`` deletes the runs of all of them first."""
    if fresh:
        for cell in plan.cells:
            shutil.rmtree(plan.run_directory(cell), ignore_errors=True)
    return [cell for cell in plan.cells if ended(plan, cell) is None]


def run_cells(
    plan: SweepPlan, cells: list[SweepCell], execute: Executor, say: Callable[[str], None]
) -> dict[str, str]:
    """Run ``cells`` with a bar over all PPO steps of the plan; what failed, by cell.

    Args:
        say: gets a line when a cell ends, fails or is tried again.
    """
    done = {cell.name: cell.settings.max_steps for cell in plan.cells}
    done |= {cell.name: len(read_lines(plan.run_directory(cell))) for cell in cells}
    failed: dict[str, str] = {}
    finished = len(plan.cells) - len(cells)
    running = 0
    with tqdm(
        total=plan.steps, initial=sum(done.values()), disable=None, unit="step", desc="sweep"
    ) as bar:
        for event in execute(cells):
            name = event.cell.name
            if event.kind == STEPPED:
                bar.update(event.steps - done[name])
                done[name] = event.steps
            elif event.kind == FINISHED:
                finished, running = finished + 1, running - 1
                say(f"{name}: {event.detail} after {event.steps} steps")
            elif event.kind in (FAILED, RETRIED):
                running -= 1
                say(f"{name}: {event.kind}, {event.detail}")
                if event.kind == FAILED:
                    failed[name] = event.detail
            else:
                running += 1
            bar.set_postfix_str(
                f"cells: {finished} of {len(plan.cells)} done, {running} running, "
                f"{len(failed)} failed"
            )
    return failed


def load_runs(plan: SweepPlan) -> dict[tuple[str, int], RunCurves]:
    """(configuration, seed) to the curves of every run that has ended."""
    runs: dict[tuple[str, int], RunCurves] = {}
    for cell in plan.cells:
        summary = ended(plan, cell)
        if summary is not None:
            lines = read_lines(plan.run_directory(cell))
            runs[cell.configuration.name, cell.settings.seed] = run_curves(summary, lines)
    return runs


def sweep_record(plan: SweepPlan, failed: dict[str, str]) -> dict[str, Any]:
    """Everything that a sweep found, for the record: runs, curves, evidence, context.

    ``evidence`` is null, and ``not_compared`` says why, where nothing could be compared.
    """
    evidence, reason = evidence_of(plan)
    return {
        "schema": SCHEMA,
        "complete": not missing_cells(plan),
        "context": run_context(plan.models.device, plan.cells[0].settings.seed),
        "models": asdict(plan.models),
        "settings": plan.cells[0].settings.identity,
        "max_steps": plan.cells[0].settings.max_steps,
        "matrix": {c.configuration.name: c.configuration.components for c in plan.cells},
        "failed": failed,
        "runs": [_run(plan, cell) for cell in plan.cells],
        "evidence": evidence.as_json() if evidence else None,
        "not_compared": reason,
    }


def evidence_of(plan: SweepPlan) -> tuple[Evidence | None, str]:
    """The evidence, or None and why there is none."""
    try:
        return weigh(load_runs(plan)), ""
    except TooFewRunsError as error:
        return None, str(error)


def _run(plan: SweepPlan, cell: SweepCell) -> dict[str, Any]:
    summary = ended(plan, cell)
    run: dict[str, Any] = {
        "configuration": cell.configuration.name,
        "seed": cell.settings.seed,
        "status": summary.status if summary else "unfinished",
    }
    if summary is None:
        return run
    lines = read_lines(plan.run_directory(cell))
    kept = asdict(summary)
    for name in ("configuration", "seed", "status", "context"):
        kept.pop(name)
    return run | kept | {"curves": {n: [_short(line.get(n)) for line in lines] for n in CURVES}}


def _short(value: Any) -> Any:
    """Six digits are more than a curve shows, and a third of the bytes."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run_sweep(
    plan: SweepPlan,
    execute: Executor,
    *,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Run what is missing and write ``sweep.json`` in the plan's directory; its content.

    The record is written whatever happens, an interruption too, from what has ended by then.

    Raises:
        PlanError: the directory holds ended runs of other settings, and ``fresh`` is off.
    """
    if not fresh:
        check_same(plan)
    failed: dict[str, str] = {}
    cells = missing_cells(plan, fresh=fresh)
    try:
        failed = run_cells(plan, cells, execute, say)
    finally:
        record = sweep_record(plan, failed)
        write_json(plan.directory / RECORD, record)
    return record


def record_path(plan: SweepPlan) -> Path:
    """Where the sweep's record is."""
    return plan.directory / RECORD


def load_sweep_record(path: Path) -> dict[str, Any]:
    """Read a ``sweep.json`` and check that it is one.

    Raises:
        ValueError: missing, truncated, of another schema; the message says what to do.
    """
    how = "`precision-forensics sweep` and `pytest -m sweep` write one"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; {how}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); run the sweep again") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no record of a PPO sweep ({SCHEMA}); {how}")
    return record
