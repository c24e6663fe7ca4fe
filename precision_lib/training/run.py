"""One run on disk, from its first step or from where it was stopped, to a summary.

A state is written before the first step. Every step's line is on disk before the next step starts.
On resuming, lines behind the state are dropped and come again the same. However a run ends, its
summary says so.
"""

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from precision_lib.jsonio import append_line, check_writable
from precision_lib.matrix import TRAINER, PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.placement import computes_on_cpu
from precision_lib.record.codec import encode
from precision_lib.record.context import run_context
from precision_lib.runtime import deterministic
from precision_lib.training.directory import (
    STEPS,
    alone,
    check_free,
    clear_debris,
    lines_before,
    write_lines,
)
from precision_lib.training.evaluation import evaluate
from precision_lib.training.events import Began, Ended, Event, StateWritten, Stepped
from precision_lib.training.failures import (
    COMPLETED,
    FINAL,
    INTERRUPTED,
    NAN_LOSS,
    OUT_OF_MEMORY,
    RunEnded,
    is_out_of_memory,
)
from precision_lib.training.lines import Figures, StepLine, numbers
from precision_lib.training.manifests import WeightSeries, remove_manifests
from precision_lib.training.settings import PPOSettings
from precision_lib.training.state import (
    asked_for,
    check_identity,
    digest,
    identity,
    read_state,
    restore,
    write_state,
)
from precision_lib.training.summary import (
    SUMMARY,
    RunSummary,
    best_window,
    last_window,
    read_summary,
    write_summary,
)
from precision_lib.training.trainer import Run, open_run, ppo_step


@dataclass
class Session:
    """A run and its directory, from opening it to its summary.

    ``run`` is None until it is open; ``lines`` are those of the steps done, as they are on disk;
    ``series`` is what the next manifests are compared with.
    """

    pipeline: Pipeline
    configuration: PrecisionConfig
    settings: PPOSettings
    directory: Path
    run: Run | None = None
    lines: list[Figures] = field(default_factory=list)
    series: WeightSeries = field(default_factory=WeightSeries)

    def keep(self, line: StepLine) -> None:
        """Write a step's line."""
        self.lines.append(append_line(self.directory / STEPS, encode(line)))

    def checkpoint(self) -> None:
        """Write manifests and state, once the lines of its steps are surely on disk.

        Nothing is written half-way through a step, or for a step whose line could not be written.
        """
        run = self.run
        if run is None or not run.whole or len(self.lines) != run.step:
            return
        if (self.directory / STEPS).exists():
            with (self.directory / STEPS).open("rb") as file:
                os.fsync(file.fileno())
        self.series.add(run, self.directory)  # before the state: where it is, they are
        write_state(self.directory, run)


def final_summary(
    directory: Path,
    configuration: PrecisionConfig,
    settings: PPOSettings,
    *,
    resume: bool,
    pipeline: Pipeline | None = None,
) -> RunSummary | None:
    """The summary of a run that has nothing left to do, None where there is something.

    A completed run goes on when more steps are asked for; one that failed would fail again.

    Args:
        pipeline: its models have to be those of the run, when it is given.

    Raises:
        StateError: what ended there is another run. SummaryError: it cannot be read.
    """
    summary = read_summary(directory) if resume else None
    if summary is None or summary.status not in FINAL:
        return None
    wanted = asked_for(configuration, settings)
    if pipeline is not None:
        wanted["models"] = identity(pipeline, configuration, settings)["models"]
    stored = {name: summary.identity.get(name) for name in wanted}
    check_identity(directory / SUMMARY, stored, wanted)
    more = settings.max_steps > summary.last_step
    return None if summary.status == COMPLETED and more else summary


def run_events(
    pipeline: Pipeline,
    configuration: PrecisionConfig,
    settings: PPOSettings,
    directory: Path,
    *,
    resume: bool = False,
    stop: Callable[[], str | None] = lambda: None,
) -> Generator[Event, None, None]:
    """Train, and say what happens; the run goes on only while its events are taken.

    Args:
        directory: of this run alone. resume: continue what is in it, if anything is.
        stop: asked between two steps; a reason to stop, or None.

    Raises:
        StateError: the directory holds a run (without ``resume``), another one, or a damaged one;
            nothing in it was changed. SummaryError: its summary cannot be read.
        InvariantError: a PPO invariant does not hold in the first step.
        OSError: nothing can be written to ``directory``.
    """
    check_free(directory, resume=resume)
    done = final_summary(directory, configuration, settings, resume=resume, pipeline=pipeline)
    if done is not None:
        yield Ended(done)
        return
    check_writable(directory)
    with alone(directory):
        yield from _events(Session(pipeline, configuration, settings, directory), stop)


def _events(session: Session, stop: Callable[[], str | None]) -> Iterator[Event]:
    low_precision = set(session.configuration.components.values()) - {"fp32", "fp64", TRAINER}
    native = not (low_precision and computes_on_cpu(*session.pipeline.models))
    with deterministic(session.settings.seed, native_products=native):
        ended = RunEnded(COMPLETED, "")
        try:
            yield from _begin(session)
            yield from _steps(session, stop)
        except Exception as error:
            ended = _end_by(error)
        if ended.line is not None:
            _try(partial(session.keep, ended.line))
        if ended.status != COMPLETED:
            _try(session.checkpoint)
        yield Ended(_summarise(session, ended))


def _end_by(error: Exception) -> RunEnded:
    """How an exception ends a run; one that no run should raise is raised again."""
    if isinstance(error, RunEnded):
        return error
    if isinstance(error, OSError):
        return RunEnded(INTERRUPTED, f"cannot write: {error}")
    if isinstance(error, FloatingPointError):
        return RunEnded(NAN_LOSS, str(error))
    if is_out_of_memory(error):
        return RunEnded(OUT_OF_MEMORY, str(error).partition("\n")[0])
    raise error


def _begin(session: Session) -> Iterator[Event]:
    """Open the run where its state is, or at the beginning; the directory then says the same.

    Nothing is written before it is clear that this is the run of the directory.
    """
    directory, given = session.directory, (session.pipeline, session.configuration)
    state = read_state(directory, identity(*given, session.settings))
    session.lines = lines_before(directory, state.step if state else None)
    run = open_run(*given, session.settings)
    if state is not None:
        restore(run, state)
        session.series.add(run, None)
    session.run = run
    clear_debris(directory)
    write_lines(directory, session.lines)
    remove_manifests(directory, run.step)
    (directory / SUMMARY).unlink(missing_ok=True)  # from now on it would not be true
    yield Began(run.step)
    if state is None:
        session.checkpoint()
        yield StateWritten(run.step)


def _steps(session: Session, stop: Callable[[], str | None]) -> Iterator[Event]:
    settings, run = session.settings, session.run
    assert run is not None
    while run.step < settings.max_steps:
        reason = stop()
        if reason:
            raise RunEnded(INTERRUPTED, f"stopped by {reason} before step {run.step}")
        line = ppo_step(run)
        session.keep(line)
        yield Stepped(line)
        if run.step % settings.checkpoint_every == 0 or run.step == settings.max_steps:
            session.checkpoint()
            yield StateWritten(run.step)


def _try(write: Callable[[], Any]) -> str:
    """Write where that is still possible; what went wrong otherwise."""
    try:
        write()
    except OSError as error:
        return str(error)
    return ""


def _summarise(session: Session, ended: RunEnded) -> RunSummary:
    """The summary of a run that ended, on disk.

    Raises:
        OSError: a final result cannot be written; the state lets it come again.
    """
    run, lines, settings = session.run, session.lines, session.settings
    evaluation, ended = _evaluation(session, ended)
    summary = RunSummary(
        status=ended.status,
        reason=str(ended),
        configuration=session.configuration.name,
        formats=session.configuration.components,
        seed=settings.seed,
        observed_formats=run.observed if run else {},
        last_step=len(lines),
        max_steps=settings.max_steps,
        best=best_window(lines),
        final=last_window(lines),
        evaluation=evaluation,
        skipped_updates=run.skipped if run else 0,
        weights_sha256=digest({"master": run.weights.master}) if run else "",
        identity=identity(session.pipeline, session.configuration, settings),
        context=run_context(str(session.pipeline.policy.model.device), settings.seed),
        seconds=sum(numbers(lines, "step_seconds")),
    )
    failed = _try(partial(write_summary, session.directory, summary))
    if failed and summary.status in FINAL:
        raise OSError(failed)
    return summary


def _evaluation(session: Session, ended: RunEnded) -> tuple[dict[str, dict[str, float]], RunEnded]:
    """FP32 figures before and after, of a run that came to its end with finite weights.

    The second result says how it ended: it is not completed where its evaluation fails.
    """
    run = session.run
    if run is None or ended.status not in FINAL:
        return {}, ended
    policies = {"initial": session.pipeline.policy.model, "final": run.weights.golden}
    size = run.settings.max_new_tokens, run.settings.evaluation_sequences
    try:
        return {n: asdict(evaluate(p, session.pipeline, *size)) for n, p in policies.items()}, ended
    except Exception as error:
        failed = _end_by(error)
        return {}, failed if ended.status == COMPLETED else ended
