"""Strict JSON and text files, written whole or not at all.

A file is written under a temporary name and renamed. NaN is refused, numpy scalars are accepted.
"""

import json
import math
import os
import tempfile
from io import RawIOBase
from pathlib import Path
from typing import Any


def to_plain(value: Any) -> Any:
    """``value`` as builtin types that strict JSON holds; a non-finite float becomes its name.

    numpy and torch scalars are unwrapped by ``item()``, paths and other objects become ``str``.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return to_plain(value.item())
    return str(value)


def parse_json(text: str) -> Any:
    """The value of a text in strict JSON.

    Raises:
        ValueError: truncated, or not JSON, or with one of ``NaN`` and ``Infinity`` in it.
    """
    return json.loads(text, parse_constant=_reject_constant)


def load_object(path: Path, schema: Any, what: str, how: str) -> dict[str, Any]:
    """A JSON object that carries ``schema`` under that name.

    Args:
        what: what it is a record of; how: which command writes one.

    Raises:
        ValueError: missing, truncated, of another schema; the message says what to do.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; {how}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); make it again: {how}") from None
    if not isinstance(found, dict) or found.get("schema") != schema:
        raise ValueError(f"{path} is no record of {what} ({schema}); {how}")
    return found


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON with :func:`write_text`."""
    text = json.dumps(to_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same directory, sync it, rename it.

    Raises:
        OSError: when the file cannot be written; the old one, if any, is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101  # mkstemp makes it private
        os.replace(temporary, path)  # noqa: PTH105  # atomic on one file system
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_writable(directory: Path) -> None:
    """Make ``directory`` if need be and write to it once, before hours of work depend on it.

    Raises:
        OSError: when it cannot be written to; the message names it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {directory} ({error.strerror}); give another one") from None


def append_line(path: Path, value: Any) -> Any:
    """Append one JSON line and flush it: it survives a kill of this process.

    Half a line that an earlier kill left behind is ended first, so that it spoils nothing else.

    Returns:
        ``value`` as it was written, see :func:`to_plain`.

    Raises:
        OSError: it cannot be written whole; nothing of it is in the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = to_plain(value)
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        torn = end > 0 and _last_byte(file) != b"\n"
        line = b"\n" * torn + json.dumps(plain, allow_nan=False).encode() + b"\n"
        try:
            while line:  # a full disk takes a part of it first
                line = line[file.write(line) :]
        except OSError:
            file.truncate(end)
            raise
    return plain


def _last_byte(file: RawIOBase) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1) or b""
