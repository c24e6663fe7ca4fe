"""Collect what a run measures, cell by cell, and make its record.

Finished cells are appended to ``cells.jsonl`` at once, each with the run that it belongs to. A line
of that file is a finished cell, or says that a run began and what it set out to do, or what it was
made from (see ``resume.py``).
"""

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from precision_lib.forensics.damage.figures import PipelineDamage
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.forensics.verdicts import Cell, HypothesisVerdict
from precision_lib.jsonio import Json, append_line, to_plain
from precision_lib.matrix import PrecisionConfig
from precision_lib.record.codec import decode, encode
from precision_lib.record.conformance import ConformanceCounts
from precision_lib.record.context import Context
from precision_lib.record.files import CELLS_NAME, RecordError, load_record, write_record
from precision_lib.record.record import Record
from precision_lib.record.sweep import Sweep

if TYPE_CHECKING:
    from precision_lib.compare.comparison import Comparison


@dataclass
class Recorder:
    """Collects what one run measures; each cell is on disk before the next one starts.

    Attributes:
        path: where the record goes; ``cells.jsonl`` lies beside it.
        context: parts of the record's context, as they become known.
        planted_fault: what was broken on purpose, for every reader to see.
        conformance: counts of the conformance checks, see ``conformance.py``.
        training: the record of a PPO sweep, without its curves.
        configurations: the matrix of this run.
        pipeline_damage: of a whole PPO step.
        comparison: what the gate says, with the baseline's file.
        earlier: finished cells of the run that this one continues, by (hypothesis, configuration);
            they are in ``cells.jsonl`` already.
    """

    path: Path
    configurations: Iterable[PrecisionConfig]
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    context: dict[str, Json] = field(default_factory=dict)
    expected: list[tuple[str, str]] = field(default_factory=list)
    planted_fault: str | None = None
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    hypotheses: dict[str, HypothesisVerdict] = field(default_factory=dict)
    conformance: ConformanceCounts | None = None
    training: Sweep | None = None
    pipeline_damage: PipelineDamage | None = None
    comparison: tuple["Comparison", str] | None = None
    earlier: dict[tuple[str, str], Cell] = field(default_factory=dict)

    @property
    def cells_path(self) -> Path:
        return self.path.parent / CELLS_NAME

    def begin(self) -> None:
        """Say in ``cells.jsonl`` that this run began: a kill leaves that behind and no record."""
        started = {"run": self.run, "record": self.path.name, "expected": self.expected}
        append_line(self.cells_path, started)

    def add_cell(self, cell: Cell) -> None:
        """Keep a finished cell and append it to ``cells.jsonl``; a second time changes nothing."""
        if cell.key in self.cells:
            return
        self.cells[cell.key] = cell
        if cell.key not in self.earlier:
            about = {"run": self.run, "planted_fault": self.planted_fault}
            append_line(self.cells_path, about | encode(cell))

    def add_hypothesis(self, verdict: HypothesisVerdict) -> None:
        """Keep a hypothesis verdict; a second one of the same hypothesis replaces the first."""
        self.hypotheses[verdict.hypothesis] = verdict

    def record(self) -> Record:
        """What was measured so far."""
        comparison, file = self.comparison or (None, "")
        context = decode(Context, to_plain(self.context))
        return Record(
            run=self.run,
            complete=bool(self.expected) and self.cells.keys() >= set(self.expected),
            planted_fault=self.planted_fault,
            context=replace(context, observed_formats=self._observed_formats()),
            matrix={c.name: c.components for c in self.configurations},
            thresholds=DECISIONS,
            expected=tuple(self.expected),
            cells=tuple(self.cells.values()),
            hypotheses=tuple(self.hypotheses[name] for name in sorted(self.hypotheses)),
            conformance=self.conformance.counted() if self.conformance else None,
            training=self.training,
            regressions=comparison.worse if comparison else (),
            gate=comparison.gate(file) if comparison else None,
            pipeline_damage=self.pipeline_damage,
        )

    def _observed_formats(self) -> dict[str, dict[str, str]]:
        """Configuration to the format of each component as seen at run time, over all cells."""
        observed: dict[str, dict[str, str]] = {}
        for cell in self.cells.values():
            merged = observed.setdefault(cell.configuration, {})
            seen = cell.evidence.observed_formats.items()
            merged.update({name: fmt for name, fmt in seen if fmt is not None})
        return observed

    def write(self, report: dict[str, Json] | None = None) -> Path:
        """Write the record, ``report`` being pytest-json-report's object if there is one."""
        write_record(self.path, self.record(), report)
        return self.path


def unfinished_run(path: Path | str) -> str | None:
    """A sentence when a later run of this record's file began and left no record, else None.

    Args:
        path: of the record, which may not exist; ``cells.jsonl`` is read beside it.
    """
    path = Path(path)
    began: dict[str, Json] = {}
    measured: dict[str, int] = {}
    for entry in entries(path):
        if entry.get("record") == path.name:
            began = entry
        elif "hypothesis" in entry:
            measured[entry["run"]] = measured.get(entry["run"], 0) + 1
    if not began or (path.is_file() and load_record(path).run == began["run"]):
        return None
    done, all_of_them = measured.get(began["run"], 0), len(began["expected"])
    how_far = f" after {done} of {all_of_them} cells" if all_of_them else ""
    return (
        f"incomplete: the last run that was to write {path.name} was killed{how_far}; what it "
        f"measured stands in {path.parent / CELLS_NAME}; --resume continues it"
    )


def entries(path: Path) -> Iterator[dict[str, Json]]:
    """The whole lines of the ``cells.jsonl`` beside the record ``path``; none without a file."""
    try:
        lines = (path.parent / CELLS_NAME).read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        if isinstance(entry, dict):
            yield entry


def load_cells(path: Path | str, run: str | None = None) -> list[Cell]:
    """Cells of one run from ``cells.jsonl``: what survives when the run itself does not.

    Args:
        run: its identifier; default: the run that wrote last.

    A line that was cut off by a kill is left out.

    Raises:
        RecordError: missing file, or a whole line that is not a cell.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordError(f"{path} does not exist; it is written as cells are finished")
    cells: list[tuple[str, Cell]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            plain = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        try:
            of_run = plain.pop("run")
            plain.pop("planted_fault", None)
            if not {"expected", "origin"} & set(plain):  # those lines are about the run
                cells.append((of_run, decode(Cell, plain)))
        except (AttributeError, KeyError, TypeError, ValueError):
            message = f"{path}, line {number} is not a cell: {line[:60]}"
            raise RecordError(message) from None
    run = run or (cells[-1][0] if cells else None)
    return [cell for of_run, cell in cells if of_run == run]
