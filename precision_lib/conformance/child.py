"""Runs the checks in a child process: what a core does to its process does not end the run.

The hazard. A core that leaves by ``os._exit(0)`` ends pytest with exit code 0: green, and nothing
was tested. A core that hangs or crashes ends the run without a word. So one forked child runs one
check after the other. When it dies or exceeds its time, the running check is named, and the next
check gets a new child.
"""

import contextlib
import faulthandler
import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.runner import Outcome
from precision_lib.jsonio import JsonObject

#: Deaths of one function after which its other checks fail without being run.
MOST_DEATHS = 3


class ToldFailure(ConformanceFailure):
    """A failure that another process has found, with its text as it was there."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(told["what"], times=told["times"])
        self.cause = list(told["cause"])
        self._text, self._case = str(told["text"]), str(told["case"])

    def case_text(self) -> str:
        """The judged case; "" where it is too large."""
        return self._case

    def __str__(self) -> str:
        return self._text


def told(result: Outcome | ConformanceFailure) -> JsonObject:
    """The outcome or failure as JSON."""
    if isinstance(result, Outcome):
        return {"outcome": asdict(result)}
    return {
        "failure": {
            "what": str(result.args[0]),
            "times": result.times,
            "cause": result.cause,
            "text": str(result),
            "case": result.case_text(),
        }
    }


def as_found(answer: Mapping[str, Any]) -> Outcome | ConformanceFailure:
    """What :func:`told` was made from."""
    if "outcome" in answer:
        return Outcome(**answer["outcome"])
    return ToldFailure(answer["failure"])


@dataclass
class Child:
    """A process that answers questions by ``answer``, forked when it is first asked.

    Attributes:
        answer: question to answer, both JSON; runs in the child.
        deaths: function of the core to how often it ended the child.
    """

    answer: Callable[[JsonObject], JsonObject]
    deaths: dict[str, int] = field(default_factory=dict)
    _pid: int = 0
    _questions: IO[str] | None = None
    _answers: int = -1

    def ask(self, function: str, question: JsonObject, seconds: float) -> JsonObject:
        """The answer of the child, in which ``function`` of the core runs.

        Raises:
            ConformanceFailure: the child died, or did not answer in time; what runs next gets a
                new one. After three deaths of a function, at once.
        """
        if self.deaths.get(function, 0) >= MOST_DEATHS:
            raise ConformanceFailure(
                f"{function} was not called again: it ended its process {MOST_DEATHS} times"
            )
        if not self._pid:
            self._fork()
        assert self._questions is not None
        try:
            self._questions.write(json.dumps(question) + "\n")
            self._questions.flush()
            line = self._line(time.monotonic() + seconds)
        except (EOFError, BrokenPipeError):
            what = self._how_it_died()
        except TimeoutError:
            os.kill(self._pid, signal.SIGKILL)
            self._how_it_died()
            what = f"did not return within {seconds:g} s (--check-timeout allows more)"
        else:
            answer: JsonObject = json.loads(line)
            return answer
        self.deaths[function] = self.deaths.get(function, 0) + 1
        raise ConformanceFailure(f"{function} {what}")

    def close(self) -> None:
        """End the child."""
        if self._pid and self._questions is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._how_it_died()

    def _line(self, until: float) -> str:
        """One line of the child; EOFError when it is gone, TimeoutError when time is up."""
        read = b""
        while not read.endswith(b"\n"):
            ready, _, _ = select.select([self._answers], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(self._answers, 2**16)
            if not part:
                raise EOFError
            read += part
        return read.decode()

    def _how_it_died(self) -> str:
        """Wait for the child, which is gone, and say how it ended."""
        _, status = os.waitpid(self._pid, 0)
        with contextlib.suppress(BrokenPipeError):
            if self._questions is not None:
                self._questions.close()
        os.close(self._answers)
        self._pid, self._questions = 0, None
        if os.WIFSIGNALED(status):
            return f"ended its process by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"left its process with exit code {os.waitstatus_to_exitcode(status)}"

    def _fork(self) -> None:
        asked, question = os.pipe()
        answers, answered = os.pipe()
        pid = os.fork()
        if pid:
            os.close(asked)
            os.close(answered)
            self._pid, self._questions, self._answers = pid, os.fdopen(question, "w"), answers
            return
        faulthandler.disable()  # the failure says the signal
        os.close(question)
        os.close(answers)
        self._serve(os.fdopen(asked), os.fdopen(answered, "w"))

    def _serve(self, questions: IO[str], answers: IO[str]) -> None:
        """Answer until nobody asks; never returns, and runs nothing of the parent's at its end."""
        code = 1
        try:
            for line in questions:
                answers.write(json.dumps(self.answer(json.loads(line))) + "\n")
                answers.flush()
            code = 0
        finally:
            os._exit(code)


def can_fork(device: str, threads: int) -> bool:
    """Whether a child is safe: no device is in use, and no pool of threads would be lost."""
    return device == "cpu" and threads == 1 and hasattr(os, "fork")
