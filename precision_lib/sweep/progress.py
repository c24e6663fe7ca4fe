"""How far a sweep is: a bar over the PPO steps that are on disk, a line when something happens."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from precision_lib.reporting.bar import progress_bar
from precision_lib.sweep.events import FAILED, FINISHED, RETRIED, STARTED, STEPPED, Event
from precision_lib.sweep.plan import SweepPlan, ended
from precision_lib.training.directory import read_lines


def steps_done(plan: SweepPlan) -> dict[str, int]:
    """Steps of each cell that are on disk; of one that has ended, all.

    Raises:
        StateError: the lines of a run are not those of its steps.
    """
    lines = {cell: len(read_lines(plan.run_directory(cell))) for cell in plan.cells}
    return {
        cell.name: count if ended(plan, cell) is None else cell.settings.max_steps
        for cell, count in lines.items()
    }


@dataclass
class Progress:
    """What the events of a sweep have said so far.

    Attributes:
        plan: of the sweep. say: gets a line when a cell ends, fails or is tried again.
        done: steps by cell, from :func:`steps_done`. finished, running: how many cells.
        failed: reason by cell.
    """

    plan: SweepPlan
    say: Callable[[str], None]
    done: dict[str, int]
    finished: int
    running: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def watch(self, events: Iterable[Event]) -> None:
        """Take all events, behind a bar; whatever happens, the cells do not run on afterwards."""
        done = sum(self.done.values())
        with progress_bar("sweep", "step", self.plan.steps, initial=done) as bar:
            try:
                for event in events:
                    self._see(event, bar)
            finally:
                if isinstance(events, Generator):
                    events.close()

    def _see(self, event: Event, bar: Any) -> None:
        name, steps = event.cell.name, event.steps
        if event.kind == STARTED:
            self.running += 1
        elif event.kind in (FINISHED, FAILED, RETRIED):
            self.running -= 1
        if event.kind == FINISHED:
            self.finished += 1
            self.say(f"{name}: {event.detail} after {steps} steps")
            steps = event.cell.settings.max_steps  # one that ended early has no more to do
        elif event.kind in (FAILED, RETRIED):
            if event.kind == FAILED:
                self.failed[name] = event.detail
            self.say(f"{name}: {event.kind}, {event.detail}")
        if event.kind in (STEPPED, FINISHED):
            bar.update(steps - self.done[name])
            self.done[name] = steps
        bar.set_postfix_str(
            f"cells: {self.finished} of {len(self.plan.cells)} done, {self.running} running, "
            f"{len(self.failed)} failed"
        )
