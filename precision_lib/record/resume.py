"""Continue a main job that was ended: which of its finished cells may be taken.

The hazard. A cell that other code, another model or another release of torch measured looks like
any other cell. So a run says in ``cells.jsonl`` what it was made from, and a run that continues it
has to agree with every word.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from precision_lib.forensics.budget import Budget
from precision_lib.forensics.verdicts import Cell
from precision_lib.jsonio import Json, append_line, to_plain
from precision_lib.models.pipeline import Pipeline
from precision_lib.record.codec import decode
from precision_lib.record.recorder import Recorder, entries
from precision_lib.trajectories.freeze import model_digests

#: Of the context, what a cell's bits can depend on. The other versions measure nothing.
_CONTEXT = (*("commit", "python", "platform", "device", "cpu", "threads", "settings", "overrides"),)
_VERSIONS = (
    *("rlhf-precision-forensics", "torch", "transformers", "tokenizers", "safetensors", "numpy"),
)
_PACKAGE = Path(__file__).parents[1]


class ResumeError(ValueError):
    """A run cannot be continued; the message names what differs and what to do."""


@dataclass(frozen=True)
class EarlierRun:
    """The last run that began to write a record.

    Attributes:
        run: its identifier.
        origin: what it was made from; None where it ended before its models were loaded.
        cells: the finished ones, by (hypothesis, configuration).
    """

    run: str
    origin: dict[str, Json] | None
    cells: dict[tuple[str, str], Cell]


def origin_of(recorder: Recorder, pipeline: Pipeline, budget: Budget) -> dict[str, Json]:
    """All that the cells of a run depend on, JSON-ready; what a user changes stands first."""
    head, context = pipeline.value_head, recorder.context
    origin = {
        "planted_fault": recorder.planted_fault,
        "budget": asdict(budget),
        "prompts": context["prompts"],
        "models": model_digests(pipeline) | {"value_head": {"sha256": head and head.sha256}},
        "matrix": {c.name: c.components for c in recorder.configurations},
        **{name: context[name] for name in _CONTEXT},
        "versions": {name: context["versions"][name] for name in _VERSIONS},
        "code": _code(),
    }
    plain: dict[str, Json] = to_plain(origin)
    return plain


def _code() -> str:
    """SHA-256 of the package's modules and texts: of a changed checkout the commit says nothing."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in (".py", ".json"):
            digest.update(str(path.relative_to(_PACKAGE)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def earlier_run(path: Path) -> EarlierRun | None:
    """The last run that began to write the record ``path``; None where there was none."""
    lines = list(entries(path))
    begun = [line for line in lines if line.get("record") == path.name]
    if not begun:
        return None
    own = [line for line in lines if line.get("run") == begun[-1]["run"]]
    origins = [line["origin"] for line in own if "origin" in line]
    cells = [_cell(line) for line in own if "metrics" in line]
    by_key = {cell.key: cell for cell in cells}
    return EarlierRun(begun[-1]["run"], origins[-1] if origins else None, by_key)


def _cell(line: dict[str, Json]) -> Cell:
    about = ("run", "planted_fault")
    return decode(Cell, {name: value for name, value in line.items() if name not in about})


def continue_run(recorder: Recorder, origin: dict[str, Json]) -> None:
    """Take the finished cells of the last run of this record, and its identifier.

    Nothing changes where no run began, or where it ended before its models were loaded.

    Raises:
        ResumeError: that run was made from something else; nothing is taken then.
    """
    earlier = earlier_run(recorder.path)
    if earlier is None or (earlier.origin is None and not earlier.cells):
        return
    where = f"the run in {recorder.cells_path} that was to write {recorder.path.name}"
    again = "run without --resume to measure everything again"
    if earlier.origin is None:
        raise ResumeError(f"{where} did not say what it was made from (an older release); {again}")
    for name, before, now in differences(earlier.origin, origin):
        raise ResumeError(
            f"{where} was made with {name} = {before}, this one has {now}: its cells do not belong "
            f"to this run; give the same again, or {again}"
        )
    recorder.run = earlier.run
    recorder.earlier = earlier.cells


def say_origin(recorder: Recorder, origin: dict[str, Json]) -> None:
    """Write down what this run is made from, before its first cell."""
    append_line(recorder.cells_path, {"run": recorder.run, "origin": origin})


def differences(before: Json, now: Json, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, value before, value now) of each difference between two JSON values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            deeper = f"{name}.{key}" if name else key
            yield from differences(before.get(key), now.get(key), deeper)
    elif before != now:
        yield name, json.dumps(before), json.dumps(now)
