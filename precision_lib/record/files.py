"""Read and write the files that hold results; the schema strings.

The hazard. A reader that takes another file for its own shows figures of something else. So each
file names its kind and its version, and earlier versions are brought to this one.

A record is pytest-json-report's object with one more key, ``precision``.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from precision_lib.jsonio import Json, load_object, parse_json, write_json
from precision_lib.record.codec import ShapeError, decode, encode
from precision_lib.record.record import Record
from precision_lib.record.self_test import Calibration, SelfTest
from precision_lib.record.sharing import complete, resolve, shared
from precision_lib.record.sweep import Sweep
from precision_lib.record.upgrade import upgrade_block

T = TypeVar("T")
CELLS_NAME = "cells.jsonl"
#: Kind of a file to the name and the version of its layout.
SCHEMAS = {
    "record": "precision-forensics/record/5",
    "baseline": "precision-forensics/baseline/3",
    "sweep": "precision-forensics/sweep/1",
    "self-test": "precision-forensics/self-test/1",
    "calibration": "precision-forensics/calibration/1",
}
#: Of a record, what stands beside the ``precision`` block.
_OUTSIDE = ("created", "failed_tests")


class RecordError(ValueError):
    """A record cannot be used; the message names the file, what is wrong and what to do."""


def version_of(schema: Json, kind: str) -> int:
    """Version of a file of a kind: the number behind the name, or the number that stands alone.

    Raises:
        ValueError: the schema is of another kind, or of a version that does not exist yet.
    """
    name, _, newest = SCHEMAS[kind].rpartition("/")
    # The first versions wrote a number alone.
    text = f"{name}/{schema}" if isinstance(schema, int) else str(schema)
    before, _, number = text.rpartition("/")
    if before != name or not number.isdigit() or not 1 <= int(number) <= int(newest):
        raise ValueError(
            f"has schema {schema!r}, this version reads {name}/1 to {newest}; upgrade "
            "rlhf-precision-forensics"
        )
    return int(number)


def block_of(record: Record) -> dict[str, Json]:
    """The ``precision`` block of a record as JSON, evidence that cells share written once."""
    block: dict[str, Json] = {"schema": SCHEMAS["record"]} | encode(record)
    for name in _OUTSIDE:
        block.pop(name, None)
    block["cells"] = shared(block["cells"])
    better = record.gate.improvements if record.gate else ()
    for plain, change in zip(_changes(block), (*record.regressions, *better), strict=True):
        plain["message"] = change.message  # for people and jq; not read back
    return block


def _changes(block: Json) -> list[Json]:
    """Regressions and improvements of a block."""
    return [*block.get("regressions", ()), *block.get("gate", {}).get("improvements", ())]


def record_of(block: Json) -> Record:
    """The record that a ``precision`` block of any version holds; the block is used up.

    Raises:
        ValueError: it is damaged, or of a later version.
    """
    version = version_of(block.pop("schema"), "record")
    try:
        if version < 3:
            upgrade_block(block, version)
        else:
            resolve(block["cells"])
        if version > 3:
            complete(block["cells"])
        for change in _changes(block):
            change.pop("message", None)
    except (AttributeError, KeyError, TypeError) as error:
        raise ShapeError(repr(error)) from None
    return decode(Record, block)


def write_record(path: Path, record: Record, report: Mapping[str, Json] | None = None) -> None:
    """Write a record, ``report`` being pytest-json-report's object if there is one."""
    write_json(path, {**_trimmed(report or {}), "precision": block_of(record)})


def _trimmed(report: Mapping[str, Json]) -> dict[str, Json]:
    """The report without what the record or JUnit hold; of a passed test its seconds, if any."""
    trimmed = {k: v for k, v in report.items() if k not in ("root", "environment", "collectors")}
    return trimmed | ({"tests": [_test(t) for t in report["tests"]]} if "tests" in report else {})


def _test(test: Mapping[str, Json]) -> dict[str, Json]:
    if test["outcome"] != "passed":
        return {k: v for k, v in test.items() if k not in ("keywords", "user_properties")}
    seconds = round(test.get("call", {}).get("duration", 0.0), 3)
    called = {"call": {"duration": seconds}} if seconds else {}  # of most less than half a ms
    return {"nodeid": test["nodeid"], "outcome": "passed"} | called


def load_record(path: Path | str) -> Record:
    """Read a record and check that it is one.

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
        report = parse_json(text)
    except ValueError as error:
        raise RecordError(
            f"record {path} is truncated or not strict JSON ({error}); the cells that were "
            f"finished stand in {path.parent / CELLS_NAME}"
        ) from None
    block = report.get("precision") if isinstance(report, dict) else None
    if not isinstance(block, dict) or "schema" not in block:
        raise RecordError(
            f"{path} is not a record of this suite: it has no 'precision' block; give the file "
            "that `pytest -m forensics` wrote"
        )
    try:
        return replace(record_of(block), **_outside(report))
    except ShapeError as error:
        raise RecordError(f"record {path} is damaged: {error}; measure again") from None
    except ValueError as error:
        raise RecordError(f"record {path} {error}") from None


def _outside(report: Json) -> dict[str, Json]:
    failed = (t for t in report.get("tests", ()) if t["outcome"] in ("failed", "error"))
    return {"created": report.get("created"), "failed_tests": tuple(t["nodeid"] for t in failed)}


def load_result(path: Path, kind: type[T], name: str, how: str) -> T:
    """Read a file of another kind than a record.

    Args:
        kind: what it holds. name: the kind's name in :data:`SCHEMAS`. how: what writes one.

    Raises:
        ValueError: missing, truncated, of another schema, damaged; the message says what to do.
    """
    content = load_object(path, name, how)
    try:
        version_of(content.pop("schema", None), name)
    except ValueError as error:
        raise ValueError(f"{path} is no {name} of this suite: it {error}; {how}") from None
    try:
        return decode(kind, content)
    except ShapeError as error:
        raise ValueError(f"{path} is damaged ({error}); make it again: {how}") from None


def load_sweep(path: Path) -> Sweep:
    """Read a ``sweep.json``. Raises: as :func:`load_result`."""
    how = "`precision-forensics sweep` and `pytest -m sweep` write one"
    return load_result(path, Sweep, "sweep", how)


def load_self_test(path: Path) -> SelfTest:
    """Read a ``self_test.json``. Raises: as :func:`load_result`."""
    return load_result(path, SelfTest, "self-test", "`precision-forensics self-test` writes one")


def load_calibration(path: Path) -> Calibration:
    """Read a ``calibration.json``. Raises: as :func:`load_result`."""
    how = "`precision-forensics calibrate` writes one"
    return load_result(path, Calibration, "calibration", how)


def write_result(path: Path, value: object, name: str) -> None:
    """Write a file of another kind than a record; ``name`` as in :data:`SCHEMAS`."""
    write_json(path, {"schema": SCHEMAS[name]} | encode(value))
