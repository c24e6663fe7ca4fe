"""The full sweep from end to end: run what is missing, then compare what there is.

The cells' own directories are the only state. A finished cell is not run again unless it is asked
for, and the evidence is made from the directories, whoever filled them.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from precision_lib.jsonio import Json, check_writable, to_plain
from precision_lib.models.loading import resolve_device
from precision_lib.models.pipeline import load_pipeline
from precision_lib.models.rollout_engine import check_engine
from precision_lib.record.codec import decode
from precision_lib.record.context import Context, run_context
from precision_lib.record.files import write_result
from precision_lib.record.sweep import (
    UNFINISHED,
    ModelsUsed,
    Run,
    Sweep,
    TrainingEvidence,
    TrainingSettings,
)
from precision_lib.sweep.curves import RunCurves, run_curves
from precision_lib.sweep.events import Event
from precision_lib.sweep.evidence import TooFewRunsError, weigh
from precision_lib.sweep.plan import Origin, PlanError, SweepCell, SweepPlan, check_same, ended
from precision_lib.sweep.progress import Progress, steps_done
from precision_lib.training.directory import alone, read_lines
from precision_lib.trajectories.batches import check_fits

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
    "gae_rms_error",
    "values_unchanged_frac",
    "accum_err_final",
    "rollout_logprob_abs_diff_mean",
    "rollout_log_ratio_final",
)
Executor = Callable[[list[SweepCell]], Iterable[Event]]


def check_models(plan: SweepPlan, *, here: bool = True) -> Origin:
    """Load what every worker will load, once and on the CPU, so that it is refused here if at all.

    Args:
        here: the workers run on this machine, so the device has to be here.

    Returns:
        What the runs will have come from, see :func:`sweep.plan.check_same`.

    Raises:
        CheckpointError, NoDeviceError: a model or the device cannot be had.
        ValueError: unknown device. PlanError: prompt and response do not fit the policy, or it has
            nothing that a rollout format could scale.
    """
    given = plan.models
    device = resolve_device(given.device) if here else torch.device(given.device)
    pipeline = load_pipeline(given.model, given.reward_model, given.reference_model)
    try:
        check_fits(pipeline.policy, plan.cells[0].settings.sampling)
        for cell in plan.cells:
            check_engine(pipeline.policy.model, cell.configuration.rollout_format)
    except (ValueError, TypeError) as error:
        raise PlanError(str(error)) from None
    head = pipeline.value_head
    models = {
        "policy": pipeline.policy.sha256,
        "reference": pipeline.reference.sha256,
        "reward": pipeline.reward.sha256,
        "value_head": head.sha256 if head else None,
    }
    return Origin(models, torch.__version__, device.type)


def missing_cells(plan: SweepPlan) -> list[SweepCell]:
    """Cells that have to be run."""
    return [cell for cell in plan.cells if ended(plan, cell) is None]


def delete_runs(plan: SweepPlan) -> None:
    """Delete the runs of all cells.

    Raises:
        StateError: a process trains in one of them. OSError: one cannot be deleted.
    """
    for directory in filter(Path.exists, map(plan.run_directory, plan.cells)):
        with alone(directory):
            shutil.rmtree(directory)


def load_runs(plan: SweepPlan) -> dict[tuple[str, int], RunCurves]:
    """(configuration, seed) to the curves of every run that has ended."""
    runs: dict[tuple[str, int], RunCurves] = {}
    for cell in plan.cells:
        summary = ended(plan, cell)
        if summary is not None:
            lines = read_lines(plan.run_directory(cell))
            runs[cell.configuration.name, cell.settings.seed] = run_curves(summary, lines)
    return runs


def sweep_record(plan: SweepPlan, failed: dict[str, str]) -> Sweep:
    """Everything that a sweep found, for the record: runs, curves, evidence, context."""
    evidence, reason = evidence_of(plan)
    settings = plan.cells[0].settings
    return Sweep(
        complete=not missing_cells(plan),
        context=_context(plan),
        models=ModelsUsed(**asdict(plan.models)),
        settings=decode(TrainingSettings, to_plain(settings.identity)),
        max_steps=settings.max_steps,
        matrix={c.configuration.name: c.configuration.components for c in plan.cells},
        failed=failed,
        runs=tuple(_run(plan, cell) for cell in plan.cells),
        evidence=evidence,
        not_compared=reason,
    )


def _context(plan: SweepPlan) -> Context:
    """Where it was trained: of the first run that ended; of this machine before that."""
    summaries = (ended(plan, cell) for cell in plan.cells)
    context = next((s.context for s in summaries if s is not None), None)
    return decode(Context, context or run_context("cpu", plan.cells[0].settings.seed))


def evidence_of(plan: SweepPlan) -> tuple[TrainingEvidence | None, str]:
    """The evidence, or None and why there is none."""
    try:
        check_same(plan)
        return weigh(load_runs(plan)), ""
    except (PlanError, TooFewRunsError) as error:
        return None, str(error)


def _run(plan: SweepPlan, cell: SweepCell) -> Run:
    summary = ended(plan, cell)
    if summary is None:
        return Run(cell.configuration.name, cell.settings.seed, UNFINISHED)
    figures = to_plain(asdict(summary))
    figures["commit"] = figures.pop("context").get(
        "commit"
    )  # a sweep that goes on may have several
    lines = read_lines(plan.run_directory(cell))
    curves = {name: [_short(line.get(name)) for line in lines] for name in CURVES}
    # A worker trains the twin as the baseline, so its summary does not have the twin's name.
    return decode(Run, figures | {"curves": curves, "configuration": cell.configuration.name})


def _short(value: Json) -> Json:
    """Six digits are more than a curve shows, and a third of the bytes."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run_sweep(
    plan: SweepPlan,
    execute: Executor,
    *,
    origin: Callable[[], Origin] | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Sweep:
    """Run what is missing and write ``sweep.json`` in the plan's directory; what it holds.

    The record is written whatever happens, an interruption too, from what has ended by then.

    Args:
        origin: :func:`check_models` of the plan, called when there is something to run; without it
            the runs are only compared with each other. What it raises is raised here, before
            anything is deleted or run.
        fresh: delete the runs of all cells first.
        say: gets a line when a cell ends, fails or is tried again.

    Raises:
        PlanError: the directory holds ended runs of something else, and ``fresh`` is off.
        StateError: another sweep runs in the directory, a run that is to be deleted is in
            progress, or its lines are damaged.
        SummaryError: a summary is damaged.
    """
    check_writable(plan.directory)
    with alone(plan.directory):
        missing = list(plan.cells) if fresh else missing_cells(plan)
        begun_from = origin() if origin and missing else None
        if fresh:
            delete_runs(plan)
        check_same(plan, begun_from)
        progress = Progress(plan, say, steps_done(plan), len(plan.cells) - len(missing))
        try:
            progress.watch(execute(missing))
        finally:
            record = sweep_record(plan, progress.failed)
            write_result(record_path(plan), record, "sweep")
    return record


def record_path(plan: SweepPlan) -> Path:
    """Where the sweep's record is."""
    return plan.directory / RECORD
