"""How many conformance checks a core passed, by function, for the record.

Tests, inputs and compared elements are counted, so that a run that compared nothing is seen, and
how near to its limit the worst error came.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import torch and Hypothesis, which a record does not need
    from precision_lib.conformance.checks import Check
    from precision_lib.conformance.failure import ConformanceFailure
    from precision_lib.conformance.runner import Outcome

_FORMATS = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class FunctionCounts:
    """What the checks of one function found.

    Attributes:
        tests: checks that ran. failed: names of those that failed.
        inputs: drawn by checks that passed. compared: their elements.
        worst_over_limit: the largest error as a share of its limit.
        ran: names of the checks. by_format: format of the input to its largest error.
        range: failed checks of severity ``range``, where they do not fail the run.
    """

    tests: int
    failed: tuple[str, ...]
    inputs: int
    compared: int
    worst_over_limit: float
    ran: tuple[str, ...] = ()
    by_format: Mapping[str, float] = field(default_factory=dict)
    range: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckFailure:
    """A failed check: first lines, input, how many times the limit, severity of its region."""

    what: tuple[str, ...]
    input: str
    times: float
    severity: str = ""


@dataclass(frozen=True)
class Conformance:
    """What the conformance tests of one run found.

    Attributes:
        target: whose core it was. not_offered: functions that it lacks.
        profile, seed: which examples were drawn.
        functions: function to its counts, in the order in which they were met.
        version: of the framework, "" for other targets.
        known: failed checks that the list of known failures holds.
        failures: failed check to what it said.
        strict: whether a failure in a region of severity ``range`` counts.
        notes: function to what is said of it and is no failure, one line.
        consequences: function to format to figures in RL terms, of a target.
    """

    target: str
    profile: str
    functions: Mapping[str, FunctionCounts]
    not_offered: tuple[str, ...] = ()
    seed: int = 0
    version: str = ""
    known: tuple[str, ...] = ()
    failures: Mapping[str, CheckFailure] = field(default_factory=dict)
    consequences: Mapping[str, Mapping[str, Mapping[str, float | str]]] = field(
        default_factory=dict
    )
    strict: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return sum(len(counts.failed) for counts in self.functions.values())


def _described(check: "Check", failure: "ConformanceFailure") -> CheckFailure:
    lines = tuple(line.strip() for line in str(failure.args[0]).splitlines()[:4])
    return CheckFailure(lines, failure.case_text(), failure.times, check.severity)


@dataclass
class ConformanceCounts:
    """Collects what the conformance tests of one run find; attributes as in :class:`Conformance`.

    ``consequences`` are taken as they are measured.
    """

    target: str = ""
    not_offered: list[str] = field(default_factory=list)
    profile: str = ""
    seed: int = 0
    functions: dict[str, FunctionCounts] = field(default_factory=dict)
    version: str = ""
    known: list[str] = field(default_factory=list)
    failures: dict[str, CheckFailure] = field(default_factory=dict)
    consequences: dict[str, dict[str, dict[str, float | str]]] = field(default_factory=dict)
    strict: bool = False
    notes: dict[str, str] = field(default_factory=dict)

    def is_counted(self, check: "Check") -> bool:
        """Whether a failure of the check fails the run."""
        return not check.is_note and (self.strict or check.severity != "range")

    def add(self, check: "Check", outcome: "Outcome | ConformanceFailure") -> None:
        """Count a check: the outcome of one that passed, the failure of one that did not."""
        before = self.functions.get(check.function, FunctionCounts(0, (), 0, 0, 0.0))
        after = replace(before, tests=before.tests + 1, ran=(*before.ran, check.name))
        if isinstance(outcome, AssertionError) and not self.is_counted(check):
            self.functions[check.function] = self._noted(check, outcome, after)
            return
        worst = outcome.times if isinstance(outcome, AssertionError) else outcome.worst
        by_format, of_format = dict(before.by_format), check.id.rpartition("-")[2]
        if of_format in _FORMATS:
            by_format[of_format] = max(by_format.get(of_format, 0.0), worst)
        worst = max(before.worst_over_limit, worst)
        after = replace(after, worst_over_limit=worst, by_format=by_format)
        if isinstance(outcome, AssertionError):
            self.failures[check.name] = _described(check, outcome)
            after = replace(after, failed=(*before.failed, check.name))
        else:
            after = replace(
                after,
                inputs=before.inputs + outcome.examples,
                compared=before.compared + outcome.compared,
            )
        self.functions[check.function] = after

    def _noted(
        self, check: "Check", failure: "ConformanceFailure", counts: FunctionCounts
    ) -> FunctionCounts:
        """Keep a failure that does not fail the run."""
        if check.is_note:
            self.notes[check.function] = str(failure.args[0]).splitlines()[0]
            return counts
        self.failures[check.name] = _described(check, failure)
        return replace(counts, range=(*counts.range, check.name))

    def counted(self) -> Conformance:
        """What was counted so far."""
        so_far = deepcopy(vars(self)) | {"not_offered": (*self.not_offered,)}
        return Conformance(**so_far | {"known": (*self.known,)})
