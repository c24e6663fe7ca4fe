"""The cells that Ray has: given to it, listened to, tried again, and asked to stop.

The hazards. A task that waits with the state of its cell fills the object store when there are
hundreds; a message that is taken after its task was given up for lost belongs to no run; a sweep
that ends must hear the last state of every cell that still runs. So Ray gets a few more cells than
it has room for, each try has a mirror of its own, and the end waits, for a while.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from precision_lib.environment import VARIABLES
from precision_lib.matrix import TWIN
from precision_lib.models.loading import EMBEDDED
from precision_lib.sweep.events import FAILED, FINISHED, RETRIED, STARTED, STEPPED, Event
from precision_lib.sweep.local import GRACE_SECONDS, POLL_SECONDS, RETRIES
from precision_lib.sweep.mirror import BEGIN, LINE, PROCESS, RAISED, TEXT, Mirror, parts_of
from precision_lib.sweep.plan import BASELINE, Models, SweepCell, SweepPlan, ended
from precision_lib.sweep.ray_connection import slots
from precision_lib.sweep.ray_worker import Job, train
from precision_lib.sweep.stop_flag import StopFlag
from precision_lib.training.run import final_summary
from precision_lib.training.state import StateError
from precision_lib.training.summary import SummaryError, read_summary


@dataclass(eq=False)
class Task:
    """A cell that was given to Ray.

    Attributes:
        cell: itself. mirror: its directory here. stream: of its messages.
        began: it said something. raised: what its run raised; "" while nothing.
        again: another try may go better.
    """

    cell: SweepCell
    mirror: Mirror
    stream: Any
    began: bool = False
    raised: str = ""
    again: bool = True


@dataclass
class Sweep:
    """The cells of one call, those that wait and those that Ray has."""

    ray: Any
    plan: SweepPlan
    needs: dict[str, float]
    waiting: list[SweepCell]
    running: list[Task] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = self.ray.get_runtime_context().get_node_id()
        actor = self.ray.remote(StopFlag).options(
            num_cpus=0,
            max_concurrency=100_000,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
        )
        self.flag = actor.remote()
        # As a local run has them; on a node torch may be imported before any code of ours.
        variables = {name: os.environ.get(name) or value for name, value in VARIABLES.items()}
        # Ray's own retry would begin at step 0; max_calls keeps the process, and its models.
        self.train = self.ray.remote(max_calls=0, max_retries=0)(train).options(
            num_returns="streaming",
            num_cpus=self.needs["CPU"],
            num_gpus=self.needs.get("GPU", 0),
            runtime_env={"env_vars": variables},
            scheduling_strategy="SPREAD",
        )

    def room(self) -> int:
        """Cells that Ray may have: those that run and as many to come; each holds its state."""
        return 2 * max(1, slots(self.ray, self.needs))

    def submit(self, cell: SweepCell) -> Iterator[Event]:
        """Give a cell to Ray, from its last state, unless there is nothing to do or no way to."""
        directory = self.plan.run_directory(cell)
        # The twin is the baseline but for its perturbation, and called so by every executor.
        twin = cell.configuration.name == TWIN.name
        configuration = BASELINE if twin else cell.configuration
        try:
            mirror = Mirror.open(directory)
        except (StateError, OSError) as error:
            yield from _at_once(cell, FAILED, 0, str(error))
            return
        try:
            done = final_summary(directory, configuration, cell.settings, resume=True)
            lines, state = mirror.given()
        except (StateError, SummaryError, OSError) as error:
            mirror.close()
            yield from _at_once(cell, FAILED, 0, str(error))
            return
        if done is not None:
            mirror.close()
            yield from _at_once(cell, FINISHED, done.last_step, done.status)
            return
        job = Job(configuration, cell.settings, found_anywhere(self.plan.models))
        parts = [self.ray.put(part) for part in parts_of(state)]
        self.running.append(Task(cell, mirror, self.train.remote(job, self.flag, lines, *parts)))

    def ready(self) -> list[Task]:
        """Tasks that have something to say; waits a moment for the first."""
        streams = [task.stream for task in self.running]
        if not streams:
            return []
        self.ray.wait(streams, num_returns=1, timeout=POLL_SECONDS)
        found, _ = self.ray.wait(streams, num_returns=len(streams), timeout=0)
        return [task for task in self.running if task.stream in found]

    def take(self, task: Task) -> Iterator[Event]:
        """One message of ``task``, or its end."""
        lost = ""
        try:
            kind, value = self.ray.get(next(task.stream))
        except StopIteration:
            pass
        except self.ray.exceptions.RayError as error:
            lost = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        else:
            task.mirror.apply(kind, value)
            if kind == RAISED:
                task.raised, task.again = value
            yield from _events(task, kind, value)
            return
        self.running.remove(task)
        event = self._judge(task, lost)
        if not task.began:
            yield Event(STARTED, task.cell)
        yield event

    def _judge(self, task: Task, lost: str) -> Event:
        cell = task.cell
        summary = ended(self.plan, cell)
        if summary is not None:
            task.mirror.close()
            return Event(FINISHED, cell, summary.last_step, summary.status)
        reason = task.raised or lost or _unfinished(self.plan, cell)
        task.mirror.apply(TEXT, reason)
        task.mirror.close()
        self.tries[cell.name] = self.tries.get(cell.name, 0) + 1
        again = task.again and self.tries[cell.name] <= RETRIES
        if again:
            self.waiting.append(cell)
        return Event(RETRIED if again else FAILED, cell, task.mirror.steps, reason)

    def end(self, reason: str) -> None:
        """Ask what runs to stop after its step, keep what it still says, cancel what does not."""
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            self.flag.ask.remote(reason)
            for task in self.running:
                if not task.began:
                    self.ray.cancel(task.stream)
            while self.running and time.monotonic() < deadline:
                for task in self.ready():
                    for _event in self.take(task):
                        pass  # nobody takes events any more
        finally:
            for task in self.running:
                with suppress(self.ray.exceptions.RayError):
                    self.ray.cancel(task.stream, force=True)
                task.mirror.close()
            with suppress(self.ray.exceptions.RayError):
                self.ray.kill(self.flag)


def _at_once(cell: SweepCell, kind: str, steps: int, detail: str) -> Iterator[Event]:
    """Events of a cell that needs no task."""
    yield Event(STARTED, cell)
    yield Event(kind, cell, steps, detail)


def _events(task: Task, kind: str, value: Any) -> Iterator[Event]:
    if not task.began:
        task.began = True
        yield Event(STARTED, task.cell, detail=value if kind == PROCESS else "")
    if kind == LINE or (kind == BEGIN and task.mirror.steps):
        yield Event(STEPPED, task.cell, task.mirror.steps)


def _unfinished(plan: SweepPlan, cell: SweepCell) -> str:
    summary = read_summary(plan.run_directory(cell))
    return f"{summary.status}: {summary.reason}" if summary else "the task ended without a summary"


def found_anywhere(models: Models) -> Models:
    """Directories by their full path: a worker is somewhere else."""

    def full(name: str) -> str:
        return str(Path(name).resolve()) if name != EMBEDDED and Path(name).is_dir() else name

    reference = models.reference_model
    return replace(
        models,
        model=full(models.model),
        reward_model=full(models.reward_model),
        reference_model=None if reference is None else full(reference),
    )
