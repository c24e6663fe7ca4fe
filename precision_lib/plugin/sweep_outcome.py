"""Run a sweep for pytest: the same library functions as the command, and what came of them."""

from dataclasses import dataclass, replace
from functools import partial

from tqdm import tqdm

from precision_lib.phases.sweep import check_models, run_sweep
from precision_lib.record.codec import encode
from precision_lib.record.recorder import Recorder
from precision_lib.record.sweep import Run, Sweep
from precision_lib.sweep.executors import LOCAL, Resources, executor
from precision_lib.sweep.plan import SweepPlan
from precision_lib.training.signals import stop_requests


@dataclass(frozen=True)
class Outcome:
    """What a sweep found."""

    record: Sweep

    @property
    def summary(self) -> Sweep:
        """The record without the curves of its runs, which are large."""
        runs = tuple(replace(run, curves={}) for run in self.record.runs)
        return replace(self.record, runs=runs)

    def run(self, cell_name: str) -> Run:
        """The run of a cell by its name, ``bf16_pure-seed-0``."""
        runs = {f"{run.configuration}-seed-{run.seed}": run for run in self.record.runs}
        return runs[cell_name]


def run(plan: SweepPlan, resources: Resources, recorder: Recorder, *, fresh: bool) -> Outcome:
    """Run what is missing of ``plan``; what there is goes to ``recorder``, whatever it is.

    Raises:
        KeyboardInterrupt: a signal asked it to stop; finished cells are kept.
        CheckpointError, NoDeviceError, PlanError, StateError, SummaryError, ValueError: as
            ``check_models``, ``executor`` and ``run_sweep`` say.
    """
    origin = partial(check_models, plan, here=resources.executor == LOCAL)
    with stop_requests() as stop:
        execute = executor(plan, resources, stop)
        outcome = Outcome(run_sweep(plan, execute, origin=origin, fresh=fresh, say=tqdm.write))
        recorder.context = encode(outcome.record.context)
        recorder.training = outcome.summary
        if stop() and not outcome.record.complete:
            raise KeyboardInterrupt(f"{stop()}: run it again to go on where it stopped")
    return outcome
