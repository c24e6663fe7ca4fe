"""One cell on a node of a cluster: train in a scratch directory, and say what it makes.

The hazards. The node shares no disk with the driver and may be gone the next minute: what is not
said is lost. A process that runs several cells must not carry anything from one into the next, and
one in which something unexpected was raised (a CUDA context after an assertion never recovers)
fails every cell that it is given after that. So everything that the run leaves on disk is streamed
when it is there, only the models are kept between cells, which no run writes to, and after an
unexpected error the process ends.
"""

import json
import os
import shutil
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from precision_lib import __version__
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.loading import CheckpointError
from precision_lib.models.pipeline import Pipeline, load_pipeline
from precision_lib.sweep.mirror import (
    BEGIN,
    END,
    LINE,
    PART,
    PROCESS,
    RAISED,
    TEXT,
    WHOLE,
    Message,
    parts_of,
)
from precision_lib.sweep.plan import Models
from precision_lib.training.directory import STEPS, alone
from precision_lib.training.invariants import InvariantError
from precision_lib.training.run import run_events
from precision_lib.training.settings import PPOSettings
from precision_lib.training.state import STATE, StateError
from precision_lib.trajectories.batches import check_fits

#: Raised again wherever the run is tried again.
REFUSALS = (StateError, InvariantError, CheckpointError, ValueError)
SCRATCH = "precision-forensics-"
#: A scratch directory that is younger may belong to a process that has not locked it yet.
YOUNG_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """What a node is told of a cell, beside the files that there are of it."""

    configuration: PrecisionConfig
    settings: PPOSettings
    models: Models
    version: str = __version__


@lru_cache(maxsize=1)
def loaded(models: Models) -> Pipeline:
    """The models, kept for the next cell of this process: a run works on copies of them."""
    return load_pipeline(models.model, models.reward_model, models.reference_model, models.device)


def train(job: Job, flag: Any, lines: bytes, *state: bytes) -> Iterator[Message]:
    """The body of a Ray task: messages for :class:`sweep.mirror.Mirror`, as they come up.

    Args:
        flag: handle of a :class:`sweep.stop_flag.StopFlag`.
        lines: of ``steps.jsonl``. state: parts of the state to go on from; none to begin.
    """
    # A future, and no call that blocks: Ray gives the CPU of a task that blocks to the next one.
    asked = flag.wait.remote().future()

    def stop() -> str | None:
        return asked.result() if asked.done() and asked.exception() is None else None

    threads = torch.get_num_threads()
    yield PROCESS, f"process {os.getpid()} on {socket.gethostname()}, {threads} thread(s)"
    try:
        with scratch() as directory:
            yield from messages(job, directory, lines, b"".join(state), stop)
    except REFUSALS as error:
        yield RAISED, (_said(error), False)
    except Exception as error:
        yield TEXT, traceback.format_exc()
        yield RAISED, (_said(error), True)
        raise SystemExit(1) from None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty directory that goes with the run.

    A process that is killed leaves one with a state in it: those of this user on this node that
    nobody holds are deleted, where the system has locks to tell.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError, StateError):
            found = left.lstat()
            young = time.time() - found.st_mtime < YOUNG_SECONDS
            if os.name != "posix" or left.is_symlink() or found.st_uid != os.getuid() or young:
                continue
            with alone(left):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as name, alone(Path(name)):
        run = Path(name) / "run"
        run.mkdir()
        yield run


def messages(
    job: Job, directory: Path, lines: bytes, state: bytes, stop: Callable[[], str | None]
) -> Iterator[Message]:
    """Train in ``directory``, which is empty. Raises what :func:`training.run.run_events` raises.

    Raises:
        ValueError: the driver has another release, or prompt and response do not fit the model.
    """
    if job.version != __version__:
        raise ValueError(f"the driver has precision_lib {job.version}, this node {__version__}")
    for name, content in ((STEPS, lines), (STATE, state)):
        if content:
            (directory / name).write_bytes(content)
    pipeline = loaded(job.models)
    check_fits(pipeline.policy, job.settings.sampling)
    said = Said(directory)
    run = run_events(pipeline, job.configuration, job.settings, directory, resume=True, stop=stop)
    for event in run:
        if event["kind"] == "begin":  # lines behind the state were cut off
            said = Said(directory)
            yield BEGIN, event["step"]
        yield from said.news()
        if event["kind"] == "end":
            yield END, event["summary"]


@dataclass
class Said:
    """How much of a run's files the driver has: from now on, what comes to them.

    Files and not events are looked at, because a run that fails writes a last line and a last state
    without an event of their own.
    """

    directory: Path
    place: int = field(init=False)
    stamp: tuple[int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        steps = self.directory / STEPS
        self.place = steps.stat().st_size if steps.exists() else 0
        self.stamp = self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        state = self.directory / STATE
        if not state.exists():
            return None
        found = state.stat()
        return found.st_ino, found.st_mtime_ns

    def news(self) -> Iterator[Message]:
        """Lines, then the state, that came since the last call."""
        if (self.directory / STEPS).exists():
            with (self.directory / STEPS).open("rb") as file:
                file.seek(self.place)
                text = file.read()
            self.place += len(text)
            for line in text.splitlines():
                yield LINE, json.loads(line)
        stamp = self._stamp()
        if stamp is not None and stamp != self.stamp:
            self.stamp = stamp
            for part in parts_of((self.directory / STATE).read_bytes()):
                yield PART, part
            yield WHOLE, None
