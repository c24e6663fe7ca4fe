"""A run's directory, kept on the driver from what a worker elsewhere says.

The hazards. A worker's disk is gone with the worker, so a state counts only once it is here, whole
and under its name; a line that is written twice, or a summary of an earlier try that is left beside
a run that goes on, makes a directory that no other executor can continue. So the messages of a
worker are the events of :func:`training.run.run_events`, with the bytes that these leave on disk,
and what they make here is the directory that the run would have made itself, file by file.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from precision_lib.jsonio import append_line, check_writable, write_bytes, write_text
from precision_lib.sweep.local import LOG
from precision_lib.training.directory import STEPS, alone, read_lines
from precision_lib.training.state import STATE
from precision_lib.training.summary import SUMMARY, write_summary

#: What a worker says: who it is (str), the first step that it does (int), the line of a step,
PROCESS, BEGIN, LINE = "process", "begin", "line"
#: a part of a state's bytes, that its parts are there (None), the RunSummary,
PART, WHOLE, END = "part", "whole", "end"
#: words for the log (str), and what the run raised: (text, whether another try may go better).
TEXT, RAISED = "text", "raised"
Message = tuple[str, Any]
#: Bytes of a state that travel in one piece; a store of 100 MiB holds several.
PART_BYTES = 16 * 2**20


def parts_of(content: bytes) -> Iterator[bytes]:
    """``content`` in pieces of at most :data:`PART_BYTES`."""
    for start in range(0, len(content), PART_BYTES):
        yield content[start : start + PART_BYTES]


@dataclass
class Mirror:
    """The directory of one run, held against other processes from ``open`` to ``close``.

    Attributes:
        directory: of the run. steps: lines that are in it. parts: of a state that is under way.
    """

    directory: Path
    steps: int = 0
    parts: list[bytes] = field(default_factory=list)
    held: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Make and lock the directory.

        Raises:
            StateError: another process trains in it. OSError: it cannot be written to.
        """
        check_writable(directory)
        mirror = cls(directory)
        mirror.held.enter_context(alone(directory))
        return mirror

    def close(self) -> None:
        """Let others have the directory."""
        self.held.close()

    def given(self) -> tuple[bytes, bytes]:
        """What a worker needs to go on: the bytes of the steps' lines and of the last state."""
        files = (self.directory / STEPS, self.directory / STATE)
        lines, state = (file.read_bytes() if file.is_file() else b"" for file in files)
        return lines, state

    def apply(self, kind: str, value: Any) -> None:
        """Do to the directory what the worker did to its own.

        Raises:
            OSError: something cannot be written; what was there is whole.
        """
        if kind == BEGIN:
            self._begin(value)
        elif kind == LINE:
            append_line(self.directory / STEPS, value)
            self.steps = value["step"] + 1
        elif kind == PART:
            self.parts.append(value)
        elif kind == WHOLE:
            self._state()
        elif kind == END:
            write_summary(self.directory, value)
        elif kind in (PROCESS, TEXT):
            with (self.directory / LOG).open("a", encoding="utf-8") as log:
                log.write(f"{value}\n")

    def _begin(self, step: int) -> None:
        """Cut off the lines that come again, and the summary, which is not true any more."""
        kept = read_lines(self.directory)[:step]
        if (self.directory / STEPS).exists():
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_text(self.directory / STEPS, text)
        (self.directory / SUMMARY).unlink(missing_ok=True)
        self.steps = len(kept)

    def _state(self) -> None:
        """The state, once the lines of its steps are surely on disk."""
        if (self.directory / STEPS).exists():
            with (self.directory / STEPS).open("rb") as lines:
                os.fsync(lines.fileno())
        write_bytes(self.directory / STATE, b"".join(self.parts))
        self.parts.clear()
