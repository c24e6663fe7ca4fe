"""Frozen dataclasses to JSON and back: field names are the keys, annotations the allowed values.

The hazard. A reader that skips what it does not know loses figures when it writes the file again.
So an unknown key, a missing key and a value of another type are errors that name their place.

A field whose value is its default is left out of the JSON. Three kinds of metadata change a field:
``KEY`` renames it, ``FLAT`` puts the entries of a mapping beside the other keys, and ``KIND``
chooses the type of the field from the JSON object around it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from precision_lib.jsonio import KEY, KIND, Json

T = TypeVar("T")
_NOT_FINITE = ("nan", "inf", "-inf")


class ShapeError(ValueError):
    """JSON that does not fit a type; the message names the place, the value and what is wanted."""


@dataclass(frozen=True)
class _Slot:
    """One field of a dataclass: its key, its type and how it is written."""

    name: str
    key: str
    kind: Any
    default: Any
    flat: bool
    choose: Callable[[Mapping[str, Json]], Any] | None


@cache
def _slots(kind: Any) -> tuple[_Slot, ...]:
    hints = get_type_hints(kind)
    return tuple(
        _Slot(
            f.name,
            f.metadata.get(KEY, f.name),
            hints[f.name],
            _default(f),
            f.metadata.get("flat", False),
            f.metadata.get(KIND),
        )
        for f in fields(kind)
    )


def _default(f: "Field[Any]") -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def encode(value: object) -> Json:
    """``value`` as builtin types of strict JSON; a number that is not finite becomes its name."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, Json] = {}
        for slot in _slots(type(value)):
            item = getattr(value, slot.name)
            if slot.flat:
                plain |= encode(item)
            elif slot.default is MISSING or item != slot.default:
                plain[slot.key] = encode(item)
        return plain
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], value: Json, where: str = "") -> T:
    """The ``kind`` that a JSON value holds.

    Args:
        kind: a dataclass, or a type that an annotation can be.
        where: the place of the value, for messages.

    Raises:
        ShapeError: the value is not one; the message begins with the place.
    """
    made: T = _decode(kind, value, where)
    return made


def _decode(kind: Any, value: Json, where: str) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _decode_fields(kind, value, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _decode_union(args, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        each = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(each) == len(value):
            items = zip(each, value, strict=True)
            return tuple(_decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(items))
    if origin in (Mapping, dict) and isinstance(value, dict):
        return {_key(args[0], k): _decode(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        if value in _NOT_FINITE:
            return float(value)
        if not isinstance(value, str):
            return value
    is_one = isinstance(kind, type) and isinstance(value, kind)
    if is_one and (kind is bool or not isinstance(value, bool)):
        return value
    raise ShapeError(f"{where.lstrip('.')} is {str(value)[:60]!r}, not {_word(kind)}")


def _key(kind: Any, key: str) -> Any:
    return int(key) if kind is int else key


def _decode_union(kinds: tuple[Any, ...], value: Json, where: str) -> Any:
    if NoneType in kinds and (value is None or (value == {} and any(map(is_dataclass, kinds)))):
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    for kind in others[:-1]:
        try:
            return _decode(kind, value, where)
        except ShapeError:
            continue
    return _decode(others[-1], value, where)


def _decode_fields(kind: Any, value: Json, where: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ShapeError(f"{where.lstrip('.')} is {str(value)[:60]!r}, not {_word(kind)}")
    rest, given = dict(value), {}
    flattened = None
    for slot in _slots(kind):
        if slot.flat:
            flattened = slot
        elif slot.key in rest:
            wanted = slot.choose(value) if slot.choose else slot.kind
            given[slot.name] = _decode(wanted, rest.pop(slot.key), f"{where}.{slot.key}")
        elif slot.default is MISSING:
            raise ShapeError(f"{where.lstrip('.') or _word(kind)} lacks {slot.key!r}")
    if flattened is not None:
        given[flattened.name] = _decode(flattened.kind, rest, where)
    elif rest:
        raise ShapeError(f"{where.lstrip('.') or _word(kind)} has the unknown key {min(rest)!r}")
    return kind(**given)


def _word(kind: Any) -> str:
    words = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    return words.get(kind) or str(getattr(kind, "__name__", kind))
