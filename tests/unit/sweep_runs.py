"""Runs of a sweep made by hand: what a run would have left, without training one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.jsonio import write_text
from precision_lib.matrix import MATRIX, TWIN, PrecisionConfig
from precision_lib.sweep.curves import RunCurves, run_curves
from precision_lib.sweep.events import FAILED, FINISHED, RETRIED, STARTED, STEPPED, Event
from precision_lib.sweep.plan import (
    REFERENCE_RUN,
    ModelNames,
    Origin,
    SweepCell,
    SweepPlan,
    plan_sweep,
)
from precision_lib.training.directory import STEPS
from precision_lib.training.failures import COMPLETED, KL_EXPLOSION
from precision_lib.training.settings import PPOSettings
from precision_lib.training.summary import RunSummary, write_summary

KL_COEFFICIENT = PPOSettings().kl_coefficient
ORIGIN = Origin({"policy": "a", "reward": "b"}, "2.0", "cpu")
STEPS_DONE = 20
NAMES = (REFERENCE_RUN.name, TWIN.name, *(c.name for c in MATRIX if c.name != REFERENCE_RUN.name))


def evaluation(reward: float, kl: float, sequences: int = 256) -> dict[str, Any]:
    """Figures before training, and after it with a reward and a KL."""
    alike = {"reward_std": 2.0, "entropy_mean": 1.0, "kl_per_token": 0.0, "sequences": sequences}
    return {
        "initial": {"reward_mean": 1.0, "kl_per_sequence": 0.0, **alike},
        "final": {"reward_mean": reward, "kl_per_sequence": kl, **alike},
    }


def summary_of(cell: SweepCell, gain: float = 1.0, kl: float = 2.0, **changes: Any) -> RunSummary:
    """The summary of a completed run that gained ``gain`` in its objective."""
    settings, configuration = cell.settings, cell.configuration
    reward = 1.0 + gain + KL_COEFFICIENT * kl
    made = RunSummary(
        status=COMPLETED,
        reason="",
        configuration=configuration.name,
        formats=configuration.components,
        seed=settings.seed,
        observed_formats=configuration.components,
        last_step=settings.max_steps,
        max_steps=settings.max_steps,
        best={},
        final={},
        evaluation=evaluation(reward, kl, settings.evaluation_sequences),
        skipped_updates=0,
        weights_sha256="",
        identity={"settings": settings.identity, **vars(ORIGIN)},
        context={"commit": {"sha": "c"}},
        seconds=1.0,
    )
    return replace(made, **changes)


def lines_of(rewards: Sequence[float], kls: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """Step lines with a reward curve and a KL curve, by default a ramp."""
    kls = [0.1 * i for i in range(len(rewards))] if kls is None else kls
    pairs = enumerate(zip(rewards, kls, strict=True))
    return [{"step": i, "reward_mean": r, "kl_sequence_mean": k} for i, (r, k) in pairs]


def ramp(top: float, steps: int = STEPS_DONE) -> list[float]:
    """A reward curve that rises to ``top`` and stays there for its second half."""
    return [top * min(1.0, i / (steps / 2)) for i in range(steps)]


def a_cell(name: str = REFERENCE_RUN.name, seed: int = 0) -> SweepCell:
    [found] = [c for c in (TWIN, *MATRIX) if c.name == name] or [replace(REFERENCE_RUN, name=name)]
    return SweepCell(found, PPOSettings(max_steps=STEPS_DONE, seed=seed))


def a_run(name: str, seed: int, gain: float, steps: int = STEPS_DONE, **changes: Any) -> RunCurves:
    """A run of a gain; its curves are a ramp of so many steps."""
    summary = summary_of(a_cell(name, seed), gain, **changes)
    return run_curves(summary, lines_of(ramp(gain, steps)))


def runs_of(
    gains: Mapping[str, Sequence[float]], steps: int = STEPS_DONE
) -> dict[tuple[str, int], RunCurves]:
    """Runs of configurations, each with its gain for seeds 0, 1, ..."""
    return {
        (name, seed): a_run(name, seed, gain, steps)
        for name, row in gains.items()
        for seed, gain in enumerate(row)
    }


def noisy_gains(
    means: dict[str, float],
    generator: np.random.Generator,
    *,
    seeds: int,
    deviation: float,
    seed_effect: float = 0.0,
) -> dict[str, Sequence[float]]:
    """Gains of the names of :data:`NAMES` and of ``means``, 1 where nothing else is said."""
    common = seed_effect * generator.standard_normal(seeds)
    names = dict.fromkeys((*NAMES, *means))
    return {
        name: [
            float(x)
            for x in means.get(name, 1.0) + common + deviation * generator.standard_normal(seeds)
        ]
        for name in names
    }


def small_plan(
    directory: Path,
    *configurations: PrecisionConfig,
    seeds: Sequence[int] = (0,),
    models: ModelNames | None = None,
    **settings: Any,
) -> SweepPlan:
    """A plan of baseline, twin and ``configurations``, four steps each unless said otherwise."""
    wanted = PPOSettings(**({"max_steps": 4} | settings))
    return plan_sweep(directory, configurations, seeds, wanted, models or ModelNames())


def leave(plan: SweepPlan, cell: SweepCell, gain: float = 1.0, **changes: Any) -> None:
    """Put a completed run where the cell's would be, in place of what is there."""
    directory = plan.run_directory(cell)
    summary = summary_of(cell, gain, **changes)
    lines = lines_of(ramp(gain, summary.last_step))
    write_text(directory / STEPS, "".join(json.dumps(line) + "\n" for line in lines))
    write_summary(directory, summary)


class Executor:
    """Leaves completed runs; notes what it was asked to run.

    But for the cell that is to ``crash`` and the one that is to ``explode`` after a step; and only
    the first cells, ``until`` so many.
    """

    def __init__(
        self, plan: SweepPlan, *, crash: str = "", explode: str = "", until: int | None = None
    ) -> None:
        self.plan, self.crash, self.explode, self.until = plan, crash, explode, until
        self.asked: list[str] = []
        self.closed = False

    def __call__(self, cells: list[SweepCell]) -> Iterator[Event]:
        self.asked = [cell.name for cell in cells]
        try:
            for cell in cells[: self.until]:
                yield Event(STARTED, cell)
                yield Event(STEPPED, cell, 2)
                if cell.name == self.crash:
                    yield Event(RETRIED, cell, 2, "exit code 1: oh")
                    yield Event(STARTED, cell)
                    yield Event(FAILED, cell, 2, "exit code 1: oh no")
                    continue
                if cell.name == self.explode:
                    leave(self.plan, cell, status=KL_EXPLOSION, last_step=1)
                    yield Event(FINISHED, cell, 1, KL_EXPLOSION)
                    continue
                leave(self.plan, cell, 1 + 0.01 * len(cell.name))
                yield Event(STEPPED, cell, 4)
                yield Event(FINISHED, cell, 4, "completed")
        finally:
            self.closed = True
