"""How far the main job is, on the terminal of a pytest run or in its log.

On a terminal a bar stands below the dots and goes before the next result is written. In a log a
line comes every 20 seconds. Neither has a colour.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest

from precision_lib.phases.progress import Progress
from precision_lib.reporting.bar import SECONDS

#: Seconds between two states of a bar.
BAR_SECONDS = 1.0
_WIDTH = 24


def bar(progress: Progress) -> str:
    """``H1 [######                  ] 25 %, about 20 min left``."""
    filled = round(min(1.0, max(0.0, progress.share)) * _WIDTH)
    drawn = "#" * filled + " " * (_WIDTH - filled)
    return progress.line().replace("main job: ", "").replace(",", f" [{drawn}]", 1)


class ProgressBar:
    """Writes through pytest's reporter, although output is captured while a test runs."""

    def __init__(self, config: pytest.Config, clock: Callable[[], float] = time.monotonic) -> None:
        find = config.pluginmanager.get_plugin
        self._reporter: Any = find("terminalreporter")
        self._capture: Any = find("capturemanager")
        self._clock, self._shown_at, self._on_screen = clock, clock(), False

    def say(self, line: str) -> None:
        """A line of its own, at once."""
        self._write(lambda: self._reporter.write_line(line))
        self._shown_at = self._clock()

    def show(self, progress: Progress) -> None:
        """The bar or the line, unless one was written a moment ago."""
        if self._reporter is None:
            return
        terminal = self._reporter.isatty
        if self._clock() - self._shown_at < (BAR_SECONDS if terminal else SECONDS):
            return
        if not terminal:
            self.say(progress.line())
            return
        self._write(lambda: self._draw(bar(progress)))
        self._shown_at, self._on_screen = self._clock(), True

    def silence(self) -> None:
        """Write nothing from now on: a forked process has another one's terminal."""
        self._reporter = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        """Make room for the result of a test."""
        if self._on_screen:
            self._write(lambda: self._reporter.rewrite("", erase=True))
            self._write(lambda: self._reporter.rewrite(""))
            self._on_screen = False

    def _draw(self, text: str) -> None:
        if not self._on_screen:
            self._reporter.ensure_newline()
        self._reporter.rewrite(text, erase=True)

    def _write(self, write: Callable[[], object]) -> None:
        if self._reporter is None or self._capture is None:
            return
        with self._capture.global_and_fixture_disabled():
            write()
            self._reporter.flush()
