"""Run the cells as actors of a Ray cluster, or of a Ray that is started on this machine.

A cluster has no common disk and may lose a node. The driver keeps each cell's directory as it was
at the cell's last state, and starts a lost cell again from there: on another node, or by hand with
``ppo --resume``. A run that refuses its settings or its state is not tried again.

The package has to be installed on every node, in the driver's release, and models have to be found
there under the name that the driver gives: the embedded ones are in the package, a directory needs
the same path on every node. Ray's own client (``ray://``) is not supported: start the sweep on a
node of the cluster. A cell for which no node has room waits until one has, as autoscaling needs it.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from precision_lib import __version__
from precision_lib.environment import VARIABLES
from precision_lib.jsonio import check_writable
from precision_lib.matrix import TWIN
from precision_lib.models.loading import EMBEDDED
from precision_lib.sweep.events import (
    FAILED,
    FINISHED,
    RETRIED,
    STARTED,
    STEPPED,
    Event,
    ExecutorError,
)
from precision_lib.sweep.local import GRACE_SECONDS, LOG, POLL_SECONDS, RETRIES
from precision_lib.sweep.plan import REFERENCE_RUN, ModelNames, SweepCell, SweepPlan, ended
from precision_lib.sweep.ray_connection import connected, import_ray, slots
from precision_lib.sweep.ray_worker import REFUSALS, RemoteCell, read_files, write_files
from precision_lib.training.directory import alone
from precision_lib.training.state import StateError
from precision_lib.training.summary import read_summary

#: A quarter of a GPU: a small model does not fill one.
GPU_SHARE = 0.25


def run_ray(
    plan: SweepPlan,
    cells: list[SweepCell],
    stop: Callable[[], str | None] = lambda: None,
    *,
    address: str | None = None,
    gpus_per_cell: float | None = None,
) -> Iterator[Event]:
    """Run ``cells`` on a cluster; their events, as they happen, as those of ``run_local``.

    When ``stop`` gives a reason, or the events are no longer taken, cells that run are asked to
    stop after their step, and their last state is waited for.

    Args:
        address: of a cluster, or ``"auto"``; None starts Ray on this machine, for this call. A
            connection that the caller has made already is used whatever the address, and kept.
        gpus_per_cell: share of a GPU; None for 0 on the CPU and :data:`GPU_SHARE` on CUDA.

    Raises:
        ExecutorError: at once, Ray is not installed, impossible resources, an address of Ray's
            client; with the first event, no cluster there, or a machine that is too small.
    """
    ray = import_ray()
    if address is not None and address.startswith("ray://"):
        raise ExecutorError(
            f"{address}: Ray's client is not supported; start the sweep on a node of the cluster "
            "with the address auto ('ray job submit' does that from elsewhere)"
        )
    device = plan.models.device
    if gpus_per_cell is None:
        gpus_per_cell = GPU_SHARE if device.startswith("cuda") else 0
    if gpus_per_cell < 0 or (gpus_per_cell > 1 and gpus_per_cell % 1):
        raise ExecutorError(
            f"{gpus_per_cell} GPUs per cell: Ray shares one GPU, or gives whole ones"
        )
    if gpus_per_cell and device.startswith("cuda:"):
        raise ExecutorError(f"--device {device}: Ray gives each cell its GPU, use --device cuda")
    needs = {"CPU": 1.0} | ({"GPU": gpus_per_cell} if gpus_per_cell else {})
    return _run(ray, plan, cells, stop, address, needs)


def _run(
    ray: Any,
    plan: SweepPlan,
    cells: list[SweepCell],
    stop: Callable[[], str | None],
    address: str | None,
    needs: dict[str, float],
) -> Iterator[Event]:
    with connected(ray, address, needs):
        sweep = Sweep(ray, plan, needs, list(cells), reason=stop())
        try:
            while (sweep.waiting or sweep.running) and not sweep.reason:
                # As many more wait with Ray: a cluster that grows sees what it is needed for.
                room = 2 * max(1, slots(ray, needs))
                while sweep.waiting and len(sweep.running) < room:
                    yield from sweep.submit(sweep.waiting.pop(0))
                for remote in sweep.ready():
                    yield from sweep.take(remote)
                sweep.reason = stop()
        finally:
            sweep.end()


@dataclass(eq=False)
class Remote:
    """A cell that Ray has.

    Attributes:
        actor: that trains it. answer: to what the actor was asked last. held: the lock of its
            directory here. steps: that are done. began: its first answer has come.
    """

    cell: SweepCell
    actor: Any
    answer: Any
    held: ExitStack
    steps: int = 0
    began: bool = False


@dataclass
class Sweep:
    """The cells of one call, those that wait and those that Ray has.

    Attributes:
        reason: to stop, that every cell is told with its next question; None while there is none.
    """

    ray: Any
    plan: SweepPlan
    needs: dict[str, float]
    waiting: list[SweepCell]
    running: list[Remote] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)
    reason: str | None = None

    def __post_init__(self) -> None:
        # As a local run has them; on a node torch may be imported before any code of ours.
        variables = {name: os.environ.get(name) or value for name, value in VARIABLES.items()}
        self.actor = self.ray.remote(RemoteCell).options(
            num_cpus=self.needs["CPU"],
            num_gpus=self.needs.get("GPU", 0),
            runtime_env={"env_vars": variables},
            scheduling_strategy="SPREAD",
        )

    def submit(self, cell: SweepCell) -> Iterator[Event]:
        """Give a cell and its files to Ray; it fails where its directory cannot be had."""
        directory, held = self.plan.run_directory(cell), ExitStack()
        try:
            check_writable(directory)
            held.enter_context(alone(directory))
            files = read_files(directory)
        except (StateError, OSError) as error:
            held.close()
            yield Event(STARTED, cell)
            yield Event(FAILED, cell, 0, str(error))
            return
        # The twin is the baseline but for its perturbation, and called so by every executor.
        twin = cell.configuration.name == TWIN.name
        configuration = REFERENCE_RUN if twin else cell.configuration
        models = found_anywhere(self.plan.models)
        actor = self.actor.remote()
        answer = actor.start.remote(__version__, configuration, cell.settings, models, files)
        self.running.append(Remote(cell, actor, answer, held))

    def ready(self) -> list[Remote]:
        """Cells whose actor has answered; waits a moment for the first."""
        answers = [remote.answer for remote in self.running]
        if not answers:
            return []
        self.ray.wait(answers, num_returns=1, timeout=POLL_SECONDS)
        done, _ = self.ray.wait(answers, num_returns=len(answers), timeout=0)
        return [remote for remote in self.running if remote.answer in done]

    def take(self, remote: Remote) -> Iterator[Event]:
        """What an answer says; the next question, or the end of the cell."""
        try:
            answer = self.ray.get(remote.answer)
            kind = "who" if isinstance(answer, str) else answer[0]
            if kind == "who":
                self._log(remote.cell, answer)
            else:
                _, remote.steps, files = answer
                if files is not None:
                    write_files(self.plan.run_directory(remote.cell), files)
        except (self.ray.exceptions.RayError, OSError) as error:
            if not remote.began:
                yield Event(STARTED, remote.cell)
            yield self._over(remote, error)
            return
        if kind == "end":
            yield self._over(remote, None)
            return
        remote.answer = remote.actor.advance.remote(self.reason)
        if kind == "who":
            remote.began = True
            yield Event(STARTED, remote.cell, detail=answer)
        elif kind == "step" or (kind == "begin" and remote.steps):
            yield Event(STEPPED, remote.cell, remote.steps)

    def _over(self, remote: Remote, error: Exception | None) -> Event:
        """How a cell ended; it waits again where another try may go better."""
        cell = remote.cell
        self._release(remote)
        summary = ended(self.plan, cell)
        if summary is not None:
            return Event(FINISHED, cell, summary.last_step, summary.status)
        reason = _reason(error) if error else self._unfinished(cell)
        self._log(cell, str(error) if error else reason)
        self.tries[cell.name] += 1
        refused = isinstance(getattr(error, "cause", None), REFUSALS)
        again = not refused and self.tries[cell.name] <= RETRIES
        if again:
            self.waiting.append(cell)
        return Event(RETRIED if again else FAILED, cell, remote.steps, reason)

    def _unfinished(self, cell: SweepCell) -> str:
        summary = read_summary(self.plan.run_directory(cell))
        return f"{summary.status}: {summary.reason}" if summary else "the run has no summary"

    def _log(self, cell: SweepCell, text: str) -> None:
        with (self.plan.run_directory(cell) / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")

    def _release(self, remote: Remote) -> None:
        self.running.remove(remote)
        self.ray.kill(remote.actor)
        remote.held.close()

    def end(self) -> None:
        """Have what runs stop after its step, keep its last state, end what does not answer."""
        self.reason = self.reason or "the end of the sweep"
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            for remote in [r for r in self.running if not r.began]:
                self._release(remote)
            while self.running and time.monotonic() < deadline:
                for remote in self.ready():
                    for _event in self.take(remote):
                        pass
        finally:
            for remote in list(self.running):
                self._release(remote)


def _reason(error: Exception) -> str:
    """What the run raised, or how the actor was lost, in a line."""
    raised = getattr(error, "cause", None) or error
    return f"{type(raised).__name__}: {str(raised).strip().partition(chr(10))[0]}"


def found_anywhere(models: ModelNames) -> ModelNames:
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
