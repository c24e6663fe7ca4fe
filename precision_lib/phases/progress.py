"""How far the main job is, in seconds of its estimate, counted forward by forward.

Every model says so through a hook on its trunk, working copies too, so that no study has to. A
stage begins where the estimate says that the stages before it end: what an ended run had measured,
and what was computed for another hypothesis, takes no time.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from precision_lib.forensics.work import DRAWN, REWARDED, SCORED, TRAINED, Pass
from precision_lib.formats import format_of
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.estimate import Estimate, duration


@dataclass(frozen=True)
class Progress:
    """Where the main job is.

    Attributes:
        stage: ``freeze``, a hypothesis or ``damage``.
        share: of the estimated seconds that are done, 0 to 1.
        left: seconds, at the pace so far.
    """

    stage: str
    share: float
    left: float

    def line(self) -> str:
        """``main job: H1, 12 %, about 1 h 20 min left``."""
        return f"main job: {self.stage}, {self.share:.0%}, about {duration(self.left)} left"


@dataclass
class Meter:
    """Adds up the forwards of one main job.

    Attributes:
        show: called after each forward, and when a stage begins.
    """

    estimate: Estimate
    show: Callable[[Progress], object]
    clock: Callable[[], float] = time.monotonic
    _stage: str = ""
    _in_stage: float = 0.0
    _worked: float = 0.0
    _started: float | None = None

    def begin(self, stage: str) -> None:
        """The stage begins; one that the estimate does not know counts as nothing."""
        self._stage, self._in_stage = stage, 0.0
        if self._started is None:
            self._started = self.clock()
        self.show(self.progress())

    def add(self, done: Pass, tokens: int) -> None:
        """So many tokens of a kind went through a model. Before the first stage none count."""
        if self._started is None:
            return
        seconds = self.estimate.speed.seconds(done, tokens)
        self._in_stage += seconds
        self._worked += seconds
        self.show(self.progress())

    def progress(self) -> Progress:
        """Where the main job is now."""
        stages = list(self.estimate.stages)
        before = stages[: stages.index(self._stage)] if self._stage in stages else []
        own = min(self._in_stage, self.estimate.stages.get(self._stage, 0.0))
        done = sum(self.estimate.stages[stage] for stage in before) + own
        elapsed = self.clock() - self._started if self._started is not None else 0.0
        pace = elapsed / self._worked if self._worked else 1.0
        total = self.estimate.seconds
        return Progress(self._stage, done / total if total else 1.0, (total - done) * pace)


@contextmanager
def watched(pipeline: Pipeline, meter: Meter) -> Iterator[None]:
    """Count the forwards of the pipeline's models, and of every copy that is made meanwhile."""
    models = {id(model): model for model in pipeline.models}
    reward = pipeline.reward.model
    handles = [
        model.base_model.register_forward_hook(_hook(meter, rewarded=model is reward))
        for model in models.values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(meter: Meter, *, rewarded: bool) -> Callable[..., None]:
    """A function, because a copy of a model keeps a function and copies an object."""

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        states = output[0]
        rows, length = states.shape[:2]
        fmt = format_of(states.dtype).name
        if rewarded:
            done = Pass(REWARDED, fmt, length)
        elif length == 1:
            done = Pass(DRAWN, fmt, length, rows)
        else:
            done = Pass(TRAINED if torch.is_grad_enabled() else SCORED, fmt, length)
        meter.add(done, rows * length)

    return hook
