"""Run the cells as processes of this machine, several at once, sharing cores and GPUs.

Each cell is a process with its own log, threads and GPU, so that one that dies leaves the others
alone. When the sweep is stopped, children are asked to finish their step and keep their state.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from precision_lib.environment import usable_cores
from precision_lib.exit_codes import USAGE
from precision_lib.sweep.arguments import command
from precision_lib.sweep.events import FAILED, FINISHED, RETRIED, STARTED, STEPPED, Event
from precision_lib.sweep.plan import SweepCell, SweepPlan, ended
from precision_lib.training.directory import STEPS

LOG = "log.txt"
RETRIES = 2
POLL_SECONDS = 0.5
#: A child that was asked to stop gets so long to finish its step before it is killed.
GRACE_SECONDS = 120.0


@dataclass
class Child:
    """A cell that runs.

    Attributes:
        process: itself. gpu: that it was given, if any.
        log_start: bytes that earlier tries left in its log. steps: lines that its steps were.
    """

    cell: SweepCell
    process: subprocess.Popen[bytes]
    gpu: str | None
    log_start: int
    steps: int = 0


def default_jobs(device: str, gpus: int) -> int:
    """Cells at once: a core each, or eight on each GPU, which a small model does not fill."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    cores = max(1, usable_cores() // threads)
    return cores if device == "cpu" else min(cores, 8 * max(gpus, 1))


def visible_gpus(device: str) -> list[str]:
    """Names that ``CUDA_VISIBLE_DEVICES`` takes, of the GPUs that the cells are dealt.

    None on the CPU, and for a device with a number, ``cuda:1``: it is that one for every cell.
    """
    if device != "cuda":
        return []
    import torch

    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if chosen is None else chosen.split(",")
    return [name.strip() for name in names[:count]]


def run_local(
    plan: SweepPlan,
    cells: list[SweepCell],
    jobs: int | None = None,
    stop: Callable[[], str | None] = lambda: None,
) -> Iterator[Event]:
    """Run ``cells``, at most ``jobs`` at once; their events, as they happen.

    A child that ends without a final status is started again, to resume, up to :data:`RETRIES`
    times, unless it refused its settings. When ``stop`` gives a reason, or the events are no longer
    taken, all children are asked to stop and waited for.
    """
    gpus = visible_gpus(plan.models.device)
    jobs = jobs or default_jobs(plan.models.device, len(gpus))
    waiting, tries = list(cells), dict.fromkeys((c.name for c in cells), 0)
    running: list[Child] = []
    try:
        while (waiting or running) and not stop():
            while waiting and len(running) < jobs:
                running.append(_start(plan, waiting.pop(0), _least_loaded(gpus, running)))
                yield Event(STARTED, running[-1].cell)
            time.sleep(POLL_SECONDS)
            for child in list(running):
                done = child.process.poll() is not None
                steps = _count_lines(plan.run_directory(child.cell) / STEPS)
                if steps != child.steps:
                    child.steps = steps
                    yield Event(STEPPED, child.cell, steps)
                if not done:
                    continue
                running.remove(child)
                event = _judge(plan, child, tries)
                if event.kind == RETRIED:
                    waiting.append(child.cell)
                yield event
    finally:
        _stop([child.process for child in running])


def _start(plan: SweepPlan, cell: SweepCell, gpu: str | None) -> Child:
    directory = plan.run_directory(cell)
    directory.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or "1"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with (directory / LOG).open("ab") as log:
        log_start = log.tell()
        # In a session of its own: a Ctrl-C at the terminal reaches the sweep, which asks it.
        process = subprocess.Popen(
            command(plan, cell, directory),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        return Child(cell, process, gpu, log_start)


def _least_loaded(gpus: list[str], running: list[Child]) -> str | None:
    return min(gpus, key=lambda g: sum(c.gpu == g for c in running)) if gpus else None


def _count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _judge(plan: SweepPlan, child: Child, tries: dict[str, int]) -> Event:
    summary = ended(plan, child.cell)
    if summary is not None:
        return Event(FINISHED, child.cell, summary.last_step, summary.status)
    tries[child.cell.name] += 1
    code = child.process.returncode
    log = plan.run_directory(child.cell) / LOG
    how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
    reason = f"{how}: {_last_line(log, child.log_start)} (log: {log})"
    again = tries[child.cell.name] <= RETRIES and code != USAGE
    return Event(RETRIED if again else FAILED, child.cell, child.steps, reason)


def _last_line(log: Path, start: int) -> str:
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask all to stop; kill those that have not after the grace time, or when interrupted."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        with suppress(subprocess.TimeoutExpired):
            for process in processes:
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
