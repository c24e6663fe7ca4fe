"""A forked process that works beside this one, and sends what it has under names.

The hazard. A process that ended, or was killed, must cost its work and nothing else: who waits for
a name learns that it never comes, and computes it. A process that outlives this one would go on
writing into the files of the run that follows. So it ends when this one does, however that ends.

Messages go through a file without a name. In a pipe that nobody reads the process would stand
still.
"""

import faulthandler
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from precision_lib.environment import usable_cores
from precision_lib.jsonio import Json

#: FP32 bytes of the largest policy of which a second set of working copies is made.
MODEL_BYTES = 2**28
#: Seconds between two looks for a message that is waited for.
_LOOK = 0.05
#: Name under which a process that could not go on says why.
FAILED = "failed"
#: Takes a name and a JSON value.
Send = Callable[[str, Json], None]


def may_help(device: str, model: Any) -> bool:
    """Whether a second process has a core, memory, and the same bits.

    Two processes of one thread each need two cores. With more threads the second core is in use,
    and a fork would lose them.
    """
    import torch

    small = 4 * sum(parameter.numel() for parameter in model.parameters()) <= MODEL_BYTES
    alone = torch.get_num_threads() == 1 and hasattr(os, "fork")
    return device == "cpu" and small and alone and usable_cores() > 1


@dataclass
class SecondProcess:
    """A process that runs ``work``, forked when it is started.

    Attributes:
        work: runs there, and sends each part as soon as it is there.
    """

    work: Callable[[Send], object]
    _pid: int = 0
    _file: int = -1
    _lifeline: int = -1
    _read: bytes = b""
    _offset: int = 0
    _received: dict[str, Json] = field(default_factory=dict)

    def start(self) -> None:
        """Fork; where that is refused, nothing will ever come."""
        with tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
        ends_with_us, self._lifeline = os.pipe()
        try:
            self._pid = os.fork()
        except OSError:
            os.close(ends_with_us)
            return
        if self._pid == 0:
            os.close(self._lifeline)
            self._serve(ends_with_us)
        os.close(ends_with_us)

    def get(self, name: str) -> Json | None:
        """What came under a name; None where it is not there yet, or never will be."""
        self._receive()
        return self._received.get(name)

    def wait_for(self, name: str) -> Json | None:
        """What comes under a name; None where the process ended without it."""
        while self.get(name) is None and self._is_running():
            time.sleep(_LOOK)
        return self.get(name)

    @property
    def failure(self) -> str:
        """Why a process that ended early did so."""
        return str(self.get(FAILED) or "it was killed")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._is_running():
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._pid = 0
        for number in (self._file, self._lifeline):
            if number >= 0:
                os.close(number)
        self._file = self._lifeline = -1

    def _is_running(self) -> bool:
        if self._pid and os.waitpid(self._pid, os.WNOHANG)[0]:
            self._pid = 0
        return self._pid != 0

    def _receive(self) -> None:
        """Take the messages that are whole."""
        if self._file < 0:
            return
        while part := os.pread(self._file, 2**20, self._offset):
            self._offset += len(part)
            self._read += part
        *lines, self._read = self._read.split(b"\n")
        for line in lines:
            name, value = json.loads(line)
            self._received[name] = value

    def _serve(self, ends_with_first: int) -> None:
        """The second process: no reaction to Ctrl-C, no end but its own; never returns."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        faulthandler.disable()  # whoever waits says what is missing
        threading.Thread(target=_end_with, args=(ends_with_first,), daemon=True).start()
        code = 1
        try:
            self.work(self._send)
            code = 0
        except Exception as error:
            self._send(FAILED, f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)

    def _send(self, name: str, value: Json) -> None:
        line = json.dumps([name, value]).encode() + b"\n"
        while line:
            line = line[os.write(self._file, line) :]


def _end_with(lifeline: int) -> None:
    """End this process when the other end of a pipe is closed, by whatever."""
    os.read(lifeline, 1)
    os._exit(1)
