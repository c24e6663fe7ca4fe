"""What one results directory holds; an absent file is None, and every reader says so."""

from dataclasses import dataclass

from precision_lib.record.record import Record
from precision_lib.record.self_test import SelfTest
from precision_lib.record.sweep import Sweep
from precision_lib.reporting.benchmarks import Benchmarks


class ResultsError(ValueError):
    """A results directory cannot be shown; the message names the file and says what to do."""


@dataclass(frozen=True)
class Results:
    """Content of the files of a results directory, None where a file is absent.

    Attributes:
        directory: how the directory is called in the commands that a reader is given.
        report: the forensics record.
        sweep: the record of a PPO sweep.
        benchmarks: the file of ``pytest --benchmark-json``.
        self_test: what planting faults and running clean showed.
        sweep_below: the sweep's place in the directory; "" where it is the directory itself.
    """

    directory: str
    report: Record | None = None
    sweep: Sweep | None = None
    benchmarks: Benchmarks | None = None
    self_test: SelfTest | None = None
    sweep_below: str = "/sweep"

    @property
    def measured(self) -> Record | None:
        """The record, None where it measured no hypothesis."""
        return self.report if self.report and self.report.cells else None
