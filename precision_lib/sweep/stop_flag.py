"""How the driver of a cluster asks cells on other machines to stop after their step.

The hazard. Cancelling a task throws an exception into the middle of an optimizer step and loses
everything since the last state; polling the driver between steps with a blocking call gives the
task's CPU away for that moment, and the next cell of the queue starts on it. So each cell waits,
in the background, for one answer that comes when the sweep is to stop. This module imports neither
Ray nor torch: the actor that it becomes is a small process.
"""

import asyncio


class StopFlag:
    """An asynchronous Ray actor: :meth:`wait` is answered once :meth:`ask` was called."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._reason = ""

    async def ask(self, reason: str) -> None:
        """Everybody is to stop."""
        self._reason = reason
        self._asked.set()

    async def wait(self) -> str:
        """The reason, when there is one."""
        await self._asked.wait()
        return self._reason
