"""What one results directory holds; an absent file is None, and every reader says so."""

from dataclasses import dataclass
from typing import Any


class ResultsError(ValueError):
    """A results directory cannot be shown; the message names the file and says what to do."""


@dataclass(frozen=True)
class Results:
    """Content of the files of a results directory, None where a file is absent.

    Attributes:
        directory: how the directory is called in the commands that a reader is given.
        report: the forensics record, pytest-json-report's object with its ``precision`` block.
        sweep: the record of a PPO sweep.
        benchmarks: the file of ``pytest --benchmark-json``.
        self_test: what planting faults and running clean showed.
        sweep_below: the sweep's place in the directory; "" where it is the directory itself.
    """

    directory: str
    report: dict[str, Any] | None = None
    sweep: dict[str, Any] | None = None
    benchmarks: dict[str, Any] | None = None
    self_test: dict[str, Any] | None = None
    sweep_below: str = "/sweep"

    @property
    def block(self) -> dict[str, Any] | None:
        """The ``precision`` block of the record, None where it measured no hypothesis."""
        block = self.report["precision"] if self.report else None
        return block if block and block["cells"] else None
