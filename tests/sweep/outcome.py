"""Run a sweep for pytest: the same library functions as the command, and what came of them."""

from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from precision_lib.phases.sweep import run_sweep
from precision_lib.sweep.executors import Resources, executor
from precision_lib.sweep.plan import SweepPlan
from precision_lib.training.signals import stop_requests


@dataclass(frozen=True)
class Outcome:
    """A sweep's record.

    Attributes:
        record: as ``sweep.json`` holds it.
    """

    record: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """The record without the curves of its runs, which are large."""
        runs = [{k: v for k, v in run.items() if k != "curves"} for run in self.record["runs"]]
        return self.record | {"runs": runs}

    def run(self, cell_name: str) -> dict[str, Any]:
        """The run of a cell by its name, ``bf16_pure-seed-0``."""
        runs = {f"{r['configuration']}-seed-{r['seed']}": r for r in self.record["runs"]}
        found: dict[str, Any] = runs[cell_name]
        return found


def run(plan: SweepPlan, resources: Resources, *, fresh: bool) -> Outcome:
    """Run what is missing of ``plan``.

    Raises:
        KeyboardInterrupt: a signal asked it to stop; finished cells are kept.
    """
    with stop_requests() as stop:
        record = run_sweep(plan, executor(plan, resources, stop), fresh=fresh, say=tqdm.write)
        if stop():
            raise KeyboardInterrupt(f"{stop()}: run it again to go on where it stopped")
    return Outcome(record)
