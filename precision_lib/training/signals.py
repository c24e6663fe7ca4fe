"""Ctrl-C and SIGTERM as a request to stop after the step, not as an exception inside it.

Both set a flag that the run looks at between two steps. A second Ctrl-C stops at once and leaves
the last state that was written.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """A function that names the signal that came, None before; handlers are put back on leaving.

    Outside the main thread, where Python allows no handlers, nothing is caught.
    """
    received: list[str] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
