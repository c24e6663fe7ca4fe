"""One run on disk, from its first step or from where it was stopped, to a summary.

The hazards. What is only in memory is lost to a kill; a line written for a step that the state does
not hold is written twice after a resume; a full disk in the middle of it all must not cost what is
already there. So every step's line is on disk before the next step starts, lines beyond the state
are dropped on resuming and come again the same, and however a run ends it says so.

Files of a run: ``steps.jsonl`` (a line per step), ``state.safetensors``, ``summary.json``.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from precision_lib.jsonio import append_line, check_writable, write_text
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.records.context import run_context
from precision_lib.runtime import deterministic
from precision_lib.training.evaluation import evaluate
from precision_lib.training.failures import (
    COMPLETED,
    FINAL,
    INTERRUPTED,
    OUT_OF_MEMORY,
    RunEnded,
    is_out_of_memory,
)
from precision_lib.training.settings import PPOSettings
from precision_lib.training.state import (
    STATE,
    StateError,
    digest,
    identity,
    read_state,
    write_state,
)
from precision_lib.training.summary import (
    SUMMARY,
    WINDOW,
    RunSummary,
    best_window,
    read_summary,
    window_mean,
    write_summary,
)
from precision_lib.training.trainer import Run, open_run, ppo_step

STEPS, LOCK = "steps.jsonl", ".lock"
#: Figures of the last window of steps that a summary shows.
FINAL_FIGURES = (
    "reward_mean",
    "reward_std",
    "kl_sequence_mean",
    "kl_k1_mean",
    "kl_penalty_mean",
    "entropy_mean",
    "explained_variance",
    "clip_frac",
    "weights_moved_frac",
    "log_ratio_near_zero_frac",
    "log_ratio_nsr",
    "reward_tie_frac",
    "value_stagnation_rate",
    "advantage_rms_error",
    "accum_err_final",
    "step_seconds",
    "tokens_per_second",
)


def holds_run(directory: Path) -> bool:
    """True when there is anything of a run."""
    return any((directory / name).exists() for name in (STEPS, STATE, SUMMARY))


def check_free(directory: Path, *, resume: bool) -> None:
    """Refuse to write over a run.

    Raises:
        StateError: there is one and ``resume`` is off.
    """
    if not resume and holds_run(directory):
        raise StateError(
            f"{directory} holds a PPO run already; continue it with --resume or give another "
            "--output_dir"
        )


def read_lines(directory: Path) -> list[dict[str, Any]]:
    """The lines of ``steps.jsonl``; one that a kill cut off is left out.

    Raises:
        StateError: a whole line that is no step's line, or steps out of order.
    """
    path = directory / STEPS
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            line = json.loads(text)
        except ValueError:
            continue  # empty, or cut off by a kill
        if not isinstance(line, dict) or line.get("step") != len(lines):
            raise StateError(
                f"{path}, line {number} is not the line of step {len(lines)}: the file was "
                "altered; start again in another --output_dir"
            )
        lines.append(line)
    return lines


def final_summary(
    directory: Path, configuration: PrecisionConfig, settings: PPOSettings, *, resume: bool
) -> RunSummary | None:
    """The summary of a run that has nothing left to do, None where there is something.

    A completed run goes on when more steps are asked for; one that failed would fail again.

    Raises:
        StateError: what ended there is another run.
    """
    summary = read_summary(directory) if resume else None
    if summary is None or summary.status not in FINAL:
        return None
    begun, wanted = summary.identity.get("settings"), settings.identity
    if begun != json.loads(json.dumps(wanted)) or summary.formats != configuration.components:
        raise StateError(
            f"{directory} holds the end of another run: {summary.configuration} with {begun}; "
            f"asked for is {configuration.name} with {wanted}; give another --output_dir"
        )
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
) -> Iterator[dict[str, Any]]:
    """Train, and say what happens: ``{"kind": "begin" | "step" | "state" | "end", ...}``.

    ``begin`` has ``step``, the first that is done here; ``step`` has ``line``; ``state`` has
    ``step``; ``end`` has ``summary``. Each is on disk when it is said. The run goes on only while
    its events are taken.

    Args:
        directory: of this run alone. resume: continue what is in it, if anything is.
        stop: asked between two steps; a reason to stop, or None.

    Raises:
        StateError: the directory holds a run (without ``resume``), another one, or a damaged one.
        InvariantError: a PPO invariant does not hold in the first step.
        OSError: nothing can be written to ``directory``.
    """
    check_free(directory, resume=resume)
    done = final_summary(directory, configuration, settings, resume=resume)
    if done is not None:
        yield {"kind": "end", "summary": done}
        return
    check_writable(directory)
    with alone(directory):
        yield from _events(pipeline, configuration, settings, directory, stop)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: two processes that train in one directory destroy both runs.

    The lock goes with the process, however that ends. Where the system has no such locks
    (Windows), nothing is checked.

    Raises:
        StateError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateError(
                f"another process is training in {directory}; wait for it, or give another "
                "--output_dir"
            ) from None
        yield


def _events(
    pipeline: Pipeline,
    configuration: PrecisionConfig,
    settings: PPOSettings,
    directory: Path,
    stop: Callable[[], str | None],
) -> Iterator[dict[str, Any]]:
    low_precision = {"bf16", "fp16"} & set(configuration.components.values())
    with deterministic(settings.seed, only_fp32=not low_precision):
        lines: list[dict[str, Any]] = []
        run: Run | None = None
        try:
            run = open_run(pipeline, configuration, settings)
            lines = _resumed_lines(directory, run)
            (directory / SUMMARY).unlink(missing_ok=True)  # from now on it would not be true
            yield {"kind": "begin", "step": run.step}
            yield from _steps(run, directory, lines, stop)
            ended = RunEnded(COMPLETED, "")
        except RunEnded as end:
            ended = end
            if end.line is not None:
                _try(partial(_keep, directory, lines, end.line))
        except OSError as error:
            if run is None:
                raise
            ended = RunEnded(INTERRUPTED, f"cannot write: {error}")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            ended = RunEnded(OUT_OF_MEMORY, str(error).splitlines()[0] if str(error) else "")
        yield {
            "kind": "end",
            "summary": _end(pipeline, configuration, run, directory, lines, ended, settings),
        }


def _resumed_lines(directory: Path, run: Run) -> list[dict[str, Any]]:
    """Read the state into ``run`` and cut the lines behind it off."""
    read_state(directory, run)
    lines = read_lines(directory)
    if len(lines) < run.step:
        raise StateError(
            f"{directory / STEPS} ends at step {len(lines) - 1}, the state is at {run.step}: lines "
            "were removed; start again in another --output_dir"
        )
    kept = lines[: run.step]
    if (directory / STEPS).exists():
        write_text(directory / STEPS, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def _steps(
    run: Run, directory: Path, lines: list[dict[str, Any]], stop: Callable[[], str | None]
) -> Iterator[dict[str, Any]]:
    settings = run.settings
    while run.step < settings.max_steps:
        reason = stop()
        if reason:
            raise RunEnded(INTERRUPTED, f"stopped by {reason} before step {run.step}")
        line = ppo_step(run)
        _keep(directory, lines, line)
        yield {"kind": "step", "line": lines[-1]}
        if run.step % settings.checkpoint_every == 0 or run.step == settings.max_steps:
            _checkpoint(directory, run)
            yield {"kind": "state", "step": run.step}


def _keep(directory: Path, lines: list[dict[str, Any]], line: dict[str, Any]) -> None:
    lines.append(append_line(directory / STEPS, line))


def _checkpoint(directory: Path, run: Run) -> None:
    """The state, once the lines of its steps are surely on disk."""
    if (directory / STEPS).exists():
        with (directory / STEPS).open("rb") as file:
            os.fsync(file.fileno())
    write_state(directory, run)


def _try(write: Callable[[], Any]) -> str:
    """Write where that is still possible; what went wrong otherwise."""
    try:
        write()
    except OSError as error:
        return str(error)
    return ""


def _end(
    pipeline: Pipeline,
    configuration: PrecisionConfig,
    run: Run | None,
    directory: Path,
    lines: list[dict[str, Any]],
    ended: RunEnded,
    settings: PPOSettings,
) -> RunSummary:
    """Everything that a run leaves behind: its state where it is whole, and its summary."""
    if run is not None and run.whole and ended.status != COMPLETED:
        _try(partial(_checkpoint, directory, run))
    final = {name: window_mean(lines[-WINDOW:], name) for name in FINAL_FIGURES}
    summary = RunSummary(
        status=ended.status,
        reason=str(ended),
        configuration=configuration.name,
        formats=configuration.components,
        seed=settings.seed,
        observed_formats=run.observed if run else {},
        last_step=len(lines),
        max_steps=settings.max_steps,
        best=best_window(lines),
        final=final,
        evaluation=_evaluation(pipeline, run, ended.status),
        skipped_updates=run.skipped if run else 0,
        weights_sha256=digest({"master": run.weights.master}) if run else "",
        identity=identity(run) if run else {},
        context=run_context(str(pipeline.policy.model.device), settings.seed),
        seconds=sum(line["step_seconds"] for line in lines),
    )
    failed = _try(partial(write_summary, directory, summary))
    if failed and ended.status == COMPLETED:
        raise OSError(failed)
    return summary


def _evaluation(pipeline: Pipeline, run: Run | None, status: str) -> dict[str, Any]:
    """FP32 figures before and after, of a run that came to its end with finite weights."""
    if run is None or status not in FINAL or not bool(torch.isfinite(run.weights.master).all()):
        return {}
    size = run.settings.max_new_tokens, run.settings.evaluation_sequences
    return {
        name: asdict(evaluate(policy, pipeline, *size))
        for name, policy in (("initial", pipeline.policy.model), ("final", run.weights.golden))
    }
