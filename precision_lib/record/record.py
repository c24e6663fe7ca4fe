"""The experiment record: what a run measured, on what, and what was said of it.

Every file of results is read into these types and written from them; ``codec.py`` makes the JSON
keys from the names of the fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from precision_lib.forensics.damage.figures import PipelineDamage
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.forensics.hypothesis import Decision
from precision_lib.forensics.verdicts import Cell, HypothesisVerdict
from precision_lib.record.changes import Change, Gate
from precision_lib.record.conformance import Conformance
from precision_lib.record.context import Context
from precision_lib.record.sweep import Sweep

Matrix = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Record:
    """What one run measured.

    Attributes:
        run: identifier, the same as in ``cells.jsonl``.
        complete: every expected cell was measured.
        planted_fault: name of the fault that was planted on purpose, None in a measurement.
        matrix: configuration to component to format. thresholds: the decision table.
        expected: (hypothesis, configuration) of every cell that the run set out to measure.
        conformance: None when no conformance check was run. training: None without a sweep.
        regressions: what is worse than the baseline. gate: None unless a baseline was given.
        pipeline_damage: a whole PPO step in each configuration; None where none was measured.
        created: seconds since 1970. failed_tests: of the pytest run, by their identifiers. Both
            stand beside the measurements in the file.
    """

    run: str
    complete: bool
    planted_fault: str | None
    context: Context
    matrix: Matrix
    thresholds: Mapping[str, Decision]
    expected: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]
    hypotheses: tuple[HypothesisVerdict, ...]
    regressions: tuple[Change, ...]
    conformance: Conformance | None = None
    training: Sweep | None = None
    gate: Gate | None = None
    pipeline_damage: PipelineDamage | None = None
    created: float | None = None
    failed_tests: tuple[str, ...] = ()

    def cells_of(self, hypothesis: str) -> dict[str, Cell]:
        """Configuration to its cell, in the order of the record."""
        return {c.configuration: c for c in self.cells if c.hypothesis == hypothesis}

    @property
    def by_key(self) -> dict[tuple[str, str], Cell]:
        """(hypothesis, configuration) to its cell."""
        return {cell.key: cell for cell in self.cells}

    @property
    def measured_hypotheses(self) -> list[str]:
        """Names of the hypotheses that have a cell."""
        return sorted({cell.hypothesis for cell in self.cells})

    @property
    def missing(self) -> list[str]:
        """Expected cells that were not measured, by name."""
        return [f"{h} {c}" for h, c in self.expected if (h, c) not in self.by_key]

    @property
    def verdicts(self) -> dict[tuple[str, str], str]:
        """(hypothesis, configuration) to the verdict of the cell."""
        return {cell.key: cell.verdict for cell in self.cells}

    def golden_floors(self, hypothesis: str) -> list[float]:
        """Noise of the FP32 truth in each cell of a hypothesis, in the damage metric's unit."""
        floors = (cell.evidence.golden_floor for cell in self.cells_of(hypothesis).values())
        return [floor.value for floor in floors if floor is not None]


def nothing_measured() -> Record:
    """The record of a run that was killed before it wrote one."""
    return Record("", False, None, Context(), {}, DECISIONS, (), (), (), ())
