"""A bar on a terminal; elsewhere a line every 20 seconds, so that nothing looks like a hang."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tqdm import tqdm

#: Seconds between two lines where no terminal shows a bar.
SECONDS = 20.0


@contextmanager
def every(say: Callable[[], None], seconds: float = SECONDS) -> Iterator[None]:
    """Call ``say`` again and again from a thread, also while one forward takes longer."""
    ended = Event()

    def tick() -> None:
        while not ended.wait(seconds):
            say()

    thread = Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def progress_bar(
    desc: str, unit: str, total: int | None = None, *, initial: int = 0, seconds: float = SECONDS
) -> "Iterator[tqdm[Any]]":
    """A bar of tqdm on stderr; where that is no terminal, its text as a line now and then.

    Nothing is written where the command was started with stderr closed: Python then has none, and
    ``print`` would take stdout.
    """
    stderr = sys.stderr
    if stderr is not None and stderr.isatty():
        with tqdm(desc=desc, unit=unit, total=total, initial=initial) as bar:
            yield bar
        return
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        tqdm(desc=desc, unit=unit, total=total, initial=initial, file=nowhere, ascii=True) as bar,
        every(lambda: print(bar, file=stderr, flush=True), seconds)
        if stderr is not None
        else nullcontext(),
    ):
        yield bar
