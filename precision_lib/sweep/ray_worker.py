"""One cell on a node of a cluster: an actor that trains in a scratch directory, event by event.

The node shares no disk with the driver. The files of the run travel to the driver whenever it has
written a state, and when it ends. An actor trains one cell, so that nothing of one run gets into
the next. An actor that is killed leaves its scratch directory behind.
"""

import os
import socket
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from precision_lib import __version__
from precision_lib.jsonio import write_bytes
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.loading import CheckpointError
from precision_lib.models.pipeline import load_pipeline
from precision_lib.sweep.plan import ModelNames
from precision_lib.training.directory import FILES
from precision_lib.training.events import Began, Ended, Stepped
from precision_lib.training.events import Event as RunEvent
from precision_lib.training.invariants import InvariantError
from precision_lib.training.manifests import manifest_names
from precision_lib.training.run import run_events
from precision_lib.training.settings import PPOSettings
from precision_lib.training.state import StateError
from precision_lib.trajectories.batches import check_fits

#: Raised again wherever the run is tried again.
REFUSALS = (StateError, InvariantError, CheckpointError, ValueError)
#: Event kind, steps that are done, and the run's files by name where they are complete.
Answer = tuple[str, int, dict[str, bytes] | None]


def read_files(directory: Path) -> dict[str, bytes]:
    """The files of a run, by name; those that are there."""
    names = [*manifest_names(directory), *FILES]
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    """Make ``directory`` that of the run: a file that the run does not have goes.

    Manifests and lines come before their state, in the order of :func:`read_files`: a state whose
    lines are missing cannot be continued.

    Raises:
        OSError: a file cannot be written; the old one is whole.
    """
    for name in (*manifest_names(directory), *FILES):
        if name not in files:
            (directory / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_bytes(directory / name, content)


class RemoteCell:
    """The body of a Ray actor; each call does a little, and the driver asks for the next."""

    def start(
        self,
        version: str,
        configuration: PrecisionConfig,
        settings: PPOSettings,
        models: ModelNames,
        files: dict[str, bytes],
    ) -> str:
        """Load the models and open the run that ``files`` hold, or a new one; who does it.

        Raises:
            ValueError: the driver has another release, or prompt and response do not fit the model.
            CheckpointError: a model is not on this node.
        """
        if version != __version__:
            raise ValueError(f"the driver has precision_lib {version}, this node {__version__}")
        pipeline = load_pipeline(
            models.model, models.reward_model, models.reference_model, models.device
        )
        check_fits(pipeline.policy, settings.sampling)
        self.scratch = TemporaryDirectory(prefix="precision-forensics-")
        self.directory = Path(self.scratch.name)
        write_files(self.directory, files)
        self.reason: str | None = None
        self.events: Generator[RunEvent, None, None] = run_events(
            *(pipeline, configuration, settings, self.directory),
            resume=True,
            stop=lambda: self.reason,
        )
        threads = torch.get_num_threads()
        return f"process {os.getpid()} on {socket.gethostname()}, {threads} thread(s)"

    def advance(self, reason: str | None) -> Answer:
        """The next event of the run; a ``reason`` stops it before its next step.

        Raises what :func:`training.run.run_events` raises; the scratch directory goes with the run.
        """
        self.reason = reason
        try:
            event = next(self.events)
            if isinstance(event, Ended):
                self.events.close()
                files = read_files(self.directory)
                self.scratch.cleanup()
                return "end", event.summary.last_step, files
        except Exception:
            self.scratch.cleanup()
            raise
        if isinstance(event, Stepped):
            return "step", event.line.step + 1, None
        if isinstance(event, Began):
            return "begin", event.step, None
        return "state", event.step, read_files(self.directory)
