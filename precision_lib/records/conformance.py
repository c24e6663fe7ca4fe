"""How many conformance checks a core passed, by function, for the record.

Tests, inputs and compared elements are counted, so that a run that compared nothing is seen, and
how near to its limit the worst error came.
"""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they import torch and Hypothesis, which a record does not need
    from precision_lib.conformance.checks import Check
    from precision_lib.conformance.failure import ConformanceFailure
    from precision_lib.conformance.runner import Outcome


def _described(check: "Check", failure: "ConformanceFailure") -> dict[str, Any]:
    return {
        "what": [line.strip() for line in str(failure.args[0]).splitlines()[:4]],
        "input": failure.case_text(),
        "times": failure.times,
        "severity": check.severity,
    }


@dataclass
class ConformanceCounts:
    """Collects what the conformance tests of one run found.

    Attributes:
        target: whose core it was. not_offered: functions that it lacks.
        profile, seed: which examples were drawn.
        functions: function to its counts, in the order in which they were met.
        version: of the framework, "" for other targets.
        strict: whether a failure in a region of severity ``range`` counts.
        known: failed checks that the list of known failures holds.
        failures: failed check to its first lines, its input and how many times the limit.
        notes: function to what is said of it and is no failure, one line.
        consequences: function to format to figures in RL terms, of a target.
    """

    target: str = ""
    not_offered: list[str] = field(default_factory=list)
    profile: str = ""
    seed: int = 0
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: str = ""
    known: list[str] = field(default_factory=list)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    consequences: dict[str, dict[str, Any]] = field(default_factory=dict)
    strict: bool = False
    notes: dict[str, str] = field(default_factory=dict)

    def is_counted(self, check: "Check") -> bool:
        """Whether a failure of the check fails the run."""
        return not check.is_note and (self.strict or check.severity != "range")

    def add(self, check: "Check", outcome: "Outcome | ConformanceFailure") -> None:
        """Count a check: the outcome of one that passed, the failure of one that did not."""
        counts = self.functions.setdefault(
            check.function,
            {
                "tests": 0,
                "ran": [],
                "failed": [],
                "range": [],
                "inputs": 0,
                "compared": 0,
                "worst_over_limit": 0.0,
                "by_format": {},
            },
        )
        counts["tests"] += 1
        counts["ran"].append(check.name)
        if isinstance(outcome, AssertionError) and not self.is_counted(check):
            self._note(check, outcome)
            return
        worst = outcome.times if isinstance(outcome, AssertionError) else outcome.worst
        counts["worst_over_limit"] = max(counts["worst_over_limit"], worst)
        of_format = check.id.rpartition("-")[2]
        if of_format in ("bf16", "fp16", "fp32"):
            before = counts["by_format"].get(of_format, 0.0)
            counts["by_format"][of_format] = max(before, worst)
        if isinstance(outcome, AssertionError):
            counts["failed"].append(check.name)
            self.failures[check.name] = _described(check, outcome)
            return
        counts["inputs"] += outcome.examples
        counts["compared"] += outcome.compared

    def _note(self, check: "Check", failure: "ConformanceFailure") -> None:
        """Keep a failure that does not fail the run."""
        if check.is_note:
            self.notes[check.function] = str(failure.args[0]).splitlines()[0]
            return
        self.functions[check.function]["range"].append(check.name)
        self.failures[check.name] = _described(check, failure)

    def as_json(self) -> dict[str, Any]:
        """Everything under the attributes' names."""
        return asdict(self)
