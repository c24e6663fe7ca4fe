"""Build, write and read the experiment record.

Finished cells are appended to ``cells.jsonl`` at once, each with the run that it belongs to. The
record is strict JSON, written under a temporary name and renamed. Reading checks what it reads.

The record is pytest-json-report's object with one more key, ``precision``:

``schema``         version of this layout, :data:`SCHEMA`
``run``            identifier, the same as in ``cells.jsonl``
``planted_fault``  name of the fault that was planted on purpose, null in a real measurement
``complete``       True when every expected cell was measured
``context``        see ``context.py``, with the checkpoint's SHA-256 and the seeds
``matrix``         configurations by name
``thresholds``     the decision table; ``noise_floors``: the golden floor of each cell
``expected``       [hypothesis, configuration] of every cell that the run set out to measure
``cells``          see ``forensics/verdicts.py``
``hypotheses``     likewise
``conformance``    see ``conformance.py``, empty when no conformance check was run
``training``       what a PPO sweep found, see ``phases/sweep.py``; empty when none was run
``regressions``    see ``changes.py``, empty unless a baseline was given
``gate``           verdict, obstacles, improvements, see ``gate.py``; empty likewise

A line of ``cells.jsonl`` is a finished cell, or says that a run began and what it set out to do, or
what it was made from (see ``resume.py``).
"""

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.forensics.verdicts import Cell, HypothesisVerdict
from precision_lib.jsonio import append_line, parse_json, to_plain, write_json
from precision_lib.matrix import PrecisionConfig
from precision_lib.records.conformance import ConformanceCounts
from precision_lib.records.upgrade import upgrade_block

if TYPE_CHECKING:
    from precision_lib.records.gate import Judgement

SCHEMA = 2
CELLS_NAME = "cells.jsonl"


class RecordError(ValueError):
    """A record cannot be used; the message names the file, what is wrong and what to do."""


@dataclass
class Recorder:
    """Collects what one run measures; each cell is on disk before the next one starts.

    Attributes:
        path: where the record goes; ``cells.jsonl`` lies beside it.
        planted_fault: what was broken on purpose, for every reader to see.
        conformance: counts of the conformance checks, see ``conformance.py``.
        training: the record of a PPO sweep, without its curves.
        configurations: the matrix of this run.
        judgement: what the gate says, with the baseline's file.
        earlier: finished cells of the run that this one continues, by (hypothesis, configuration);
            they are in ``cells.jsonl`` already.
    """

    path: Path
    configurations: Iterable[PrecisionConfig]
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    context: dict[str, Any] = field(default_factory=dict)
    expected: list[tuple[str, str]] = field(default_factory=list)
    planted_fault: str | None = None
    cells: list[dict[str, Any]] = field(default_factory=list)
    hypotheses: list[dict[str, Any]] = field(default_factory=list)
    conformance: ConformanceCounts | None = None
    training: dict[str, Any] = field(default_factory=dict)
    judgement: tuple["Judgement", str] | None = None
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
        key = (cell.hypothesis, cell.configuration)
        if key not in {(c["hypothesis"], c["configuration"]) for c in self.cells}:
            self.cells.append(to_plain(cell.as_json()))
            if key not in self.earlier:
                append_line(
                    self.cells_path,
                    {"run": self.run, "planted_fault": self.planted_fault, **cell.as_json()},
                )

    def add_hypothesis(self, verdict: HypothesisVerdict) -> None:
        """Keep a hypothesis verdict; a second one of the same hypothesis replaces the first."""
        self.hypotheses = [h for h in self.hypotheses if h["hypothesis"] != verdict.hypothesis]
        self.hypotheses.append(to_plain(verdict.as_json()))

    def block(self) -> dict[str, Any]:
        """The ``precision`` block."""
        measured = {(c["hypothesis"], c["configuration"]) for c in self.cells}
        return {
            "schema": SCHEMA,
            "run": self.run,
            "complete": bool(self.expected) and measured >= set(self.expected),
            "planted_fault": self.planted_fault,
            "context": self.context | {"observed_formats": self._observed_formats()},
            "matrix": {c.name: c.components for c in self.configurations},
            "thresholds": {h: asdict(d) for h, d in DECISIONS.items()},
            "noise_floors": self._noise_floors(),
            "expected": [list(key) for key in self.expected],
            "cells": self.cells,
            "hypotheses": sorted(self.hypotheses, key=lambda h: str(h["hypothesis"])),
            "conformance": self.conformance.as_json() if self.conformance else {},
            "training": to_plain(self.training),
            "regressions": self._regressions(),
            "gate": self._gate(),
        }

    def _regressions(self) -> list[dict[str, Any]]:
        return [c.as_json() for c in self.judgement[0].regressions] if self.judgement else []

    def _gate(self) -> dict[str, Any]:
        if self.judgement is None:
            return {}
        judgement, file = self.judgement
        return {"baseline": file, **judgement.as_json()}

    def _noise_floors(self) -> dict[str, Any]:
        """Hypothesis to configuration to the golden floor that its cell was judged by."""
        floors: dict[str, Any] = {}
        for cell in self.cells:
            if "golden_floor" in cell["evidence"]:
                of_hypothesis = floors.setdefault(cell["hypothesis"], {})
                of_hypothesis[cell["configuration"]] = cell["evidence"]["golden_floor"]
        return floors

    def _observed_formats(self) -> dict[str, Any]:
        """Configuration to the format of each component as seen at run time, over all cells."""
        observed: dict[str, dict[str, str]] = {}
        for cell in self.cells:
            seen = cell["evidence"].get("observed_formats", {})
            merged = observed.setdefault(cell["configuration"], {})
            merged.update({name: fmt for name, fmt in seen.items() if fmt is not None})
        return observed

    def write(self, report: dict[str, Any] | None = None) -> Path:
        """Write the record, ``report`` being pytest-json-report's object if there is one."""
        write_json(self.path, {**(report or {}), "precision": self.block()})
        return self.path


def load_record(path: Path | str) -> dict[str, Any]:
    """Read a record and check that it is one.

    Returns:
        The whole object; the measurements stand under ``precision``.

    Raises:
        RecordError: missing, truncated, not a record of this project, or of a newer schema.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecordError(
            f"record {path} does not exist; `pytest -m forensics` writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"record {path} cannot be read: {error}") from None
    try:
        record = parse_json(text)
    except ValueError as error:
        raise RecordError(
            f"record {path} is truncated or not strict JSON ({error}); the cells that were "
            f"finished stand in {path.parent / CELLS_NAME}"
        ) from None
    block = record.get("precision") if isinstance(record, dict) else None
    if not isinstance(block, dict) or "schema" not in block:
        raise RecordError(
            f"{path} is not a record of this suite: it has no 'precision' block; give the file "
            "that `pytest -m forensics` wrote"
        )
    _check_schema(path, block)
    try:
        if block["schema"] < SCHEMA:
            upgrade_block(block)
    except (AttributeError, KeyError, TypeError) as error:
        raise RecordError(f"record {path} is damaged ({error!r}); measure again") from None
    return record  # type: ignore[no-any-return]


def _check_schema(path: Path, block: dict[str, Any]) -> None:
    if not isinstance(block["schema"], int) or block["schema"] > SCHEMA:
        raise RecordError(
            f"record {path} has schema {block['schema']!r}, this version reads up to {SCHEMA}; "
            "upgrade rlhf-precision-forensics"
        )
    for key in ("run", "context", "matrix", "cells", "hypotheses"):
        if key not in block:
            raise RecordError(f"record {path} is damaged: its precision block lacks {key!r}")


def unfinished_run(path: Path | str) -> str | None:
    """A sentence when a later run of this record's file began and left no record, else None.

    Args:
        path: of the record, which may not exist; ``cells.jsonl`` is read beside it.
    """
    path = Path(path)
    began: dict[str, Any] = {}
    measured: dict[str, int] = {}
    for entry in entries(path):
        if entry.get("record") == path.name:
            began = entry
        elif "hypothesis" in entry:
            measured[entry["run"]] = measured.get(entry["run"], 0) + 1
    if not began or (path.is_file() and load_record(path)["precision"]["run"] == began["run"]):
        return None
    done, all_of_them = measured.get(began["run"], 0), len(began["expected"])
    how_far = f" after {done} of {all_of_them} cells" if all_of_them else ""
    return (
        f"incomplete: the last run that was to write {path.name} was killed{how_far}; what it "
        f"measured stands in {path.parent / CELLS_NAME}; --resume continues it"
    )


def entries(path: Path) -> Iterator[dict[str, Any]]:
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


def load_cells(path: Path | str, run: str | None = None) -> list[dict[str, Any]]:
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
    lines = path.read_text(encoding="utf-8").splitlines()
    cells: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            cell = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        if not isinstance(cell, dict) or "run" not in cell:
            raise RecordError(f"{path}, line {number} is not a cell: {line[:60]}")
        if not {"expected", "origin"} & set(cell):  # those lines are about the run
            cells.append(cell)
    run = run or (cells[-1]["run"] if cells else None)
    return [cell for cell in cells if cell["run"] == run]
