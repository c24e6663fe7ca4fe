"""Read a file of columns: npz, safetensors, JSON lines, parquet and torch files.

The hazard is pickle: loading it runs code of whoever wrote the file. numpy reads with
``allow_pickle=False`` and torch with ``weights_only=True``. A file that needs more is refused.
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.mismatch.schema import Array, DumpError

#: Name to an array, or to a list of rows of different lengths, or to one value; one row likewise.
Table = dict[str, Any]


def read_table(path: Path) -> Table:
    """Every column of the file, as stored.

    Raises:
        DumpError: missing, empty, truncated, altered, pickled, or of an unknown kind.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DumpError(
            f"{path}: files that end in {path.suffix!r} are not read; known: {', '.join(_READERS)}"
        )
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DumpError(f"{path}: {error.strerror}") from None
    if path.is_dir():
        raise DumpError(f"{path} is a directory; give one file, or two: ROLLOUT TRAIN")
    if size == 0:
        raise DumpError(f"{path} is empty")
    try:
        return reader(path)
    except OSError as error:
        raise DumpError(f"{path}: {error.strerror or error}") from None
    except MemoryError:
        raise DumpError(f"{path}: a column is larger than the memory of this machine") from None


def _npz(path: Path) -> Table:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file):
            file.seek(0)  # np.load takes other files than archives, and leaves broken ones open
            with np.load(file, allow_pickle=False) as archive:
                return {name: _npz_column(path, archive, name) for name in archive.files}
    except DumpError:
        raise
    except (ValueError, EOFError, KeyError, TypeError, NotImplementedError, RuntimeError) as error:
        raise DumpError(f"{path} is no npz archive: {_short(error)}") from None
    except zipfile.BadZipFile as error:
        raise DumpError(f"{path} is truncated or no npz archive: {_short(error)}") from None


def _npz_column(path: Path, archive: Any, name: str) -> Any:
    try:
        return archive[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DumpError(
                f"{path}: column {name} holds Python objects (pickle), which are not loaded; "
                "store numbers in one array, or use JSON lines"
            ) from None
        raise DumpError(f"{path}: column {name} cannot be read: {_short(error)}") from None
    except Exception as error:  # zlib.error, BadZipFile, struct.error, SyntaxError of a header
        raise DumpError(f"{path}: column {name} is altered or truncated: {_short(error)}") from None


_SAFETENSORS_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


def _safetensors(path: Path) -> Table:
    from safetensors import SafetensorError, deserialize

    content = path.read_bytes()
    try:
        columns = {name: _tensor(path, name, view) for name, view in deserialize(content)}
    except SafetensorError as error:
        raise DumpError(f"{path} is truncated or no safetensors file: {_short(error)}") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {**columns, **header.get("__metadata__", {})}


def _tensor(path: Path, name: str, view: Mapping[str, Any]) -> Array:
    data, shape = bytes(view["data"]), view["shape"]
    if view["dtype"] == "BF16":
        upper = np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)
        return upper.view("<f4").reshape(shape)
    if view["dtype"] not in _SAFETENSORS_TYPES:
        raise DumpError(f"{path}: column {name} is of type {view['dtype']}; store float32")
    return np.frombuffer(data, _SAFETENSORS_TYPES[view["dtype"]]).reshape(shape)


def _json_lines(path: Path) -> Table:
    """One object a line, one line a sequence; a line with ``claimed`` alone holds the claims."""
    rows: list[Table] = []
    shared: Table = {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DumpError(f"{path} is no UTF-8 text: {_short(error)}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)  # NaN is taken: it is counted as a missing value
        except (ValueError, RecursionError) as error:
            raise DumpError(f"{path}, line {number} is no whole JSON: {_short(error)}") from None
        if not isinstance(row, dict):
            raise DumpError(f"{path}, line {number} holds no object of columns")
        if set(row) <= {"claimed"}:
            shared |= row
        else:
            rows.append(row)
    return {**by_column(path, rows), **shared}


def by_column(path: Path, rows: list[Table]) -> Table:
    """Columns of a list of rows.

    Raises:
        DumpError: a row lacks a column that the first row has.
    """
    names = list(rows[0]) if rows else []
    for number, row in enumerate(rows, 1):
        missing = [name for name in names if name not in row]
        if missing:
            raise DumpError(f"{path}, row {number}: column {missing[0]} is missing")
    table: Table = {name: [row[name] for row in rows] for name in names}
    if "claimed" in table:
        table["claimed"] = table["claimed"][0]
    return table


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DumpError(
            f"{path}: parquet needs pyarrow, which the extra parquet installs: "
            'pip install "rlhf-precision-forensics[parquet]"'
        ) from None
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DumpError(f"{path} is truncated or no parquet file: {_short(error)}") from None
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    claimed = {"claimed": metadata["claimed"]} if "claimed" in metadata else {}
    return {**by_column(path, table.to_pylist()), **claimed}


def _torch_file(path: Path) -> Table:
    """A dictionary of tensors (verl, OpenRLHF), or slime's and miles' debug files."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error)
        pickled = "Weights only" in reason or "weights_only" in reason or "Unsupported" in reason
        what = (
            "needs pickle, which runs code of its writer; save a dictionary of tensors instead"
            if pickled
            else f"is truncated or no torch file: {_short(error)}"
        )
        raise DumpError(f"{path} {what}") from None
    if isinstance(content, dict) and isinstance(content.get("samples"), list):
        step = content.get("rollout_id")
        rows = [dict(sample) for sample in content["samples"]]
        table = by_column(path, rows)
        return table | ({} if step is None else {"step": [step] * len(rows)})
    if isinstance(content, dict) and isinstance(content.get("rollout_data"), dict):
        content = {"rollout_id": content.get("rollout_id"), **content["rollout_data"]}
    if not isinstance(content, dict) or is_dataclass(content):
        raise DumpError(f"{path} holds a {type(content).__name__}; save a dictionary of tensors")
    return {str(name): _plain(value) for name, value in content.items()}


def _plain(value: Any) -> Any:
    """A tensor as an array, in a list too."""
    if hasattr(value, "detach"):
        tensor = value.detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


_READERS: dict[str, Callable[[Path], Table]] = {
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".pt": _torch_file,
}
