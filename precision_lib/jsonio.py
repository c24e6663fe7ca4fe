"""Strict JSON and text files, written whole or not at all.

A file is written under a temporary name and renamed. NaN is refused, numpy scalars are accepted.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path
from types import MappingProxyType
from typing import Any

#: A value of strict JSON.
Json = Any
#: Metadata of a dataclass field: its key in the JSON; what chooses its type (``record/codec.py``).
KEY, KIND = "key", "kind"
#: Metadata of a mapping field whose entries stand beside the other keys of the object.
FLAT: Mapping[str, bool] = MappingProxyType({"flat": True})


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


#: Any object of JSON, in a place that reads no key of it, or checks each that it reads.
JsonObject = dict[str, Any]


def load_object(path: Path, what: str, how: str) -> JsonObject:
    """A file that holds one JSON object.

    Args:
        what: the kind of the file. how: which command writes one.

    Raises:
        ValueError: missing, truncated, or not an object; the message says what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=unique_names)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; {how}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); make it again: {how}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no {what} of this suite; {how}")
    return content


def unique_names(pairs: list[tuple[str, Any]]) -> JsonObject:
    """An object of JSON whose names differ; Python's own parser keeps the last of two.

    Raises:
        ValueError: a name comes twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} comes twice")
    return made


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Write strict JSON with :func:`write_text`; a short or flat object takes one line.

    Args:
        sort_keys: for a file whose lines are reviewed; then a flat object takes a line, and no
            other.
    """
    write_text(path, "\n".join(_lines(to_plain(value), sort_keys, 0)) + "\n")


_SHORT = 200


def _lines(value: Any, sort_keys: bool, depth: int) -> list[str]:
    text = json.dumps(value, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)
    if not _is_deep(value) or (len(text) < _SHORT and not sort_keys):
        return [text]
    indent, brackets = " " * (depth + 1), "{}" if isinstance(value, dict) else "[]"
    keys = sorted(value) if isinstance(value, dict) and sort_keys else value
    lines = [brackets[0]]
    for key in keys:
        item = value[key] if isinstance(value, dict) else key
        first, *rest = _lines(item, sort_keys, depth + 1)
        name = f"{json.dumps(key, ensure_ascii=False)}: " if isinstance(value, dict) else ""
        lines += [f"{indent}{name}{first}", *rest]
        lines[-1] += ","
    lines[-1] = lines[-1].removesuffix(",")
    return [*lines, " " * depth + brackets[1]]


def _is_deep(value: Any) -> bool:
    """Whether it holds an object, or a list of objects or of lists."""
    if isinstance(value, dict):
        return any((isinstance(v, dict) and bool(v)) or _is_deep(v) for v in value.values())
    return isinstance(value, list) and any(isinstance(v, dict | list) and v for v in value)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same directory, sync it, rename it.

    Raises:
        OSError: when the file cannot be written; the old one, if any, is untouched.
    """
    _check_no_directory(path)
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


def check_file_writable(path: Path) -> None:
    """The same for a file: its directory can be written to, and it is no directory itself.

    Raises:
        OSError: when it cannot be written; the message names it.
    """
    _check_no_directory(path)
    check_writable(path.parent)


def _check_no_directory(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give the name of a file")


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
