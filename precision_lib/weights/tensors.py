"""A tensor of a checkpoint or of a manifest, and the facts that are compared: hashes, statistics.

Canonical bytes: the codes in row-major order of the logical shape, little-endian, without padding,
in the tensor's own format. ``sha256`` is SHA-256 of these bytes alone; name and shape are not part
of it. A hash "as bf16" is that of the values rounded once to nearest, ties to even.

A tensor of a file is read in pieces of 1 Mi elements at most. One of a manifest is in
:mod:`weights.recorded`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from math import prod
from typing import Any, Protocol

import numpy as np

from precision_lib.jsonio import JsonObject
from precision_lib.weights.codes import (
    SIGNIFICAND,
    TRUNCATED,
    Codes,
    Values,
    cast,
    code_type,
    decode,
    is_float,
    nonfinite,
)
from precision_lib.weights.statistics import Counts, Statistics

PIECE = 1 << 20
#: Elements that are looked at before all are.
FIRST = 1 << 12
#: Bytes up to which a manifest holds the hash of the transposed tensor, which needs it whole.
TRANSPOSED_LIMIT = 1 << 26
#: Formats that a manifest also hashes a wider tensor in.
CASTS = ("bf16", "fp16")

Range = tuple[int, int]


class Tensor(Protocol):
    """Facts about a stored tensor or a part of one; None is "not recorded"."""

    name: str
    fmt: str
    shape: tuple[int, ...]

    def digest(self, fmt: str) -> str | None:
        """SHA-256 of the canonical bytes after a cast to ``fmt``."""

    def transposed_digest(self, fmt: str) -> str | None:
        """The same of the transposed matrix; None for what is no matrix."""

    def exact_in(self, fmt: str) -> bool | None:
        """Whether a cast to ``fmt`` changes no value."""

    def statistics(self) -> Statistics | None: ...

    def nonfinite(self) -> int:
        """How many values are NaN or infinite."""

    def codes(self) -> Codes | None:
        """All codes in the tensor's shape; None without data."""

    def part(self, ranges: tuple[Range, ...], shape: tuple[int, ...]) -> "Tensor | None":
        """The elements of ``ranges`` (flat, row-major) as a tensor of ``shape``."""

    def columns(self, start: int, stop: int) -> "Tensor | None":
        """Columns of a matrix."""


def values_of(tensor: Tensor) -> Values | None:
    """Decoded values in the tensor's shape, or None without data."""
    codes = tensor.codes()
    return None if codes is None else decode(codes, tensor.fmt)


def elements(tensor: Tensor) -> int:
    """Number of elements."""
    return prod(tensor.shape)


class DataTensor:
    """A tensor whose codes can be read: ``fetch(start, stop)`` gives those of flat elements."""

    def __init__(
        self,
        name: str,
        fmt: str,
        shape: tuple[int, ...],
        fetch: Callable[[int, int], Codes],
        ranges: tuple[Range, ...] | None = None,
        stored_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.name, self.fmt, self.shape = name, fmt, shape
        self._stored_shape = shape if stored_shape is None else stored_shape
        self._fetch = fetch
        self._ranges = ((0, prod(shape)),) if ranges is None else ranges
        self._digests: dict[str, str | None] = {}
        self._transposed: dict[str, str | None] = {}
        self._exact: dict[str, bool] = {}
        self._statistics: Statistics | None = None

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Flat element ranges of the stored tensor that this one consists of."""
        return self._ranges

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a stored tensor."""
        return self._stored_shape != self.shape

    def pieces(self, multiple: int = 1) -> Iterator[Codes]:
        """The codes in row-major order, flat, at most :data:`PIECE` at a time.

        Each has a multiple of ``multiple`` elements, and more than a piece where one is longer.
        """
        length = max(PIECE // max(multiple, 1), 1) * max(multiple, 1)
        for start, stop in self._ranges:
            for place in range(start, stop, length):
                yield self._fetch(place, min(place + length, stop))

    def values(self) -> Iterator[Values]:
        """The decoded values in row-major order, flat, at most :data:`PIECE` at a time."""
        return (decode(codes, self.fmt) for codes in self.pieces())

    def digest(self, fmt: str) -> str | None:
        if fmt not in self._digests:
            self._scan([fmt], with_statistics=False)
        return self._digests[fmt]

    def exact_in(self, fmt: str) -> bool | None:
        if not (is_float(fmt) and is_float(self.fmt)):
            return None
        if fmt not in self._exact:
            first = min(elements(self), FIRST)
            inside = first < elements(self)
            if inside and not self.part(((0, first),), (first,)).exact_in(fmt):
                self._exact[fmt] = False  # most tensors are not, and need no pass
            else:
                self._scan([fmt], with_statistics=False)
        return self._exact[fmt]

    def statistics(self) -> Statistics:
        if self._statistics is None:
            self._scan([], with_statistics=True)
            assert self._statistics is not None
        return self._statistics

    def nonfinite(self) -> int:
        return sum(nonfinite(codes, self.fmt) for codes in self.pieces())

    def codes(self) -> Codes:
        parts = list(self.pieces())
        whole = parts[0] if len(parts) == 1 else np.concatenate([*parts, _none(self.fmt)])
        return whole.reshape(self.shape)

    def transposed_digest(self, fmt: str) -> str | None:
        if len(self.shape) != 2:
            return None
        if fmt not in self._transposed:
            codes = self.codes()
            converted = codes if fmt == self.fmt else _converted(codes, self.fmt, fmt)
            self._transposed[fmt] = None if converted is None else sha256(converted.T)
        return self._transposed[fmt]

    def part(self, ranges: tuple[Range, ...], shape: tuple[int, ...]) -> "DataTensor":
        starts = np.cumsum([0, *(stop - start for start, stop in self._ranges)])
        inside = [
            _absolute(self._ranges, starts, start, stop) for start, stop in ranges if stop > start
        ]
        joined = tuple(span for spans in inside for span in spans)
        return DataTensor(self.name, self.fmt, shape, self._fetch, joined, self._stored_shape)

    def columns(self, start: int, stop: int) -> "DataTensor":
        rows, width = self.shape
        count = stop - start
        starts = np.cumsum([0, *(high - low for low, high in self._ranges)])

        def fetch(first: int, last: int) -> Codes:
            """Whole rows are read, and cut."""
            top, bottom = first // count, -(-last // count)
            spans = _absolute(self._ranges, starts, top * width, bottom * width)
            whole = np.concatenate([self._fetch(*span) for span in spans])
            chosen: Codes = whole.reshape(-1, width)[:, start:stop].reshape(-1)
            return chosen[first - top * count : last - top * count]

        return DataTensor(self.name, self.fmt, (rows, count), fetch)

    def record(self, *, with_transposed: bool = True) -> JsonObject:
        """What a manifest holds of this tensor."""
        casts = [f for f in CASTS if is_float(self.fmt) and f != self.fmt]
        faulty = [TRUNCATED] if self.fmt == "fp32" else []
        self._scan([self.fmt, *casts, *faulty], with_statistics=True)
        small = elements(self) * code_type(self.fmt).itemsize <= TRANSPOSED_LIMIT
        matrix = len(self.shape) == 2 and with_transposed
        transposed = [self.fmt, *casts] if small and matrix else []
        statistics = self.statistics()
        return {
            "format": self.fmt,
            "shape": list(self.shape),
            "sha256": self.digest(self.fmt),
            "casts": {fmt: self.digest(fmt) for fmt in [*casts, *faulty]},
            "exact_in": [fmt for fmt in casts if self.exact_in(fmt)],
            "transposed": {fmt: self.transposed_digest(fmt) for fmt in transposed},
            **asdict(statistics),
        }

    def _scan(self, formats: list[str], *, with_statistics: bool) -> None:
        """One pass over the codes for all hashes that are asked for."""
        hashes = {fmt: hashlib.sha256() for fmt in formats}
        exact = dict.fromkeys(formats, True)
        counted = Counts(elements(self)) if with_statistics else None
        for codes in self.pieces():
            values: Values | None = None
            if counted is not None or any(fmt != self.fmt for fmt in formats):
                values = decode(codes, self.fmt)
            for fmt in formats:
                converted = codes if fmt == self.fmt else _converted(codes, self.fmt, fmt, values)
                if converted is None:
                    exact[fmt] = False
                    continue
                hashes[fmt].update(converted.data)
                if is_float(fmt) and fmt != self.fmt and exact[fmt] and values is not None:
                    exact[fmt] = _same_values(decode(converted, fmt), values)
            if counted is not None and values is not None:
                counted.add(values)
        for fmt in formats:
            known = fmt == self.fmt or _is_cast(self.fmt, fmt)
            self._digests[fmt] = hashes[fmt].hexdigest() if known else None
            self._exact[fmt] = exact[fmt]
        if counted is not None:
            self._statistics = counted.result()


def part_key(ranges: tuple[Range, ...]) -> str:
    """The name of a part in a manifest: flat element ranges, such as ``0:4096,8192:12288``."""
    return ",".join(f"{start}:{stop}" for start, stop in ranges)


def columns_key(start: int, stop: int) -> str:
    """The name of some columns of a matrix in a manifest."""
    return f"columns {start}:{stop}"


def sha256(codes: Codes) -> str:
    """SHA-256 of the canonical bytes of ``codes``, as hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(codes).data).hexdigest()


def _converted(codes: Codes, own: str, fmt: str, values: Values | None = None) -> Codes | None:
    """``codes`` cast to ``fmt``; None where one of the formats is not a floating-point format."""
    if not _is_cast(own, fmt):
        return None
    return cast(decode(codes, own) if values is None else values, fmt)


def _is_cast(own: str, fmt: str) -> bool:
    return is_float(own) and (is_float(fmt) or (fmt == TRUNCATED and own == "fp32"))


def _same_values(back: Values, values: Values) -> bool:
    if back.dtype == values.dtype == np.float32:
        return bool(np.array_equal(back.view(np.uint32), values.view(np.uint32)))
    return bool(np.array_equal(back, values, equal_nan=True))


def _none(fmt: str) -> Codes:
    return np.empty(0, code_type(fmt))


def _absolute(
    outer: tuple[Range, ...], starts: Any, start: int, stop: int
) -> list[tuple[int, int]]:
    """Elements start to stop of the concatenated ``outer`` ranges, as ranges of the storage."""
    parts = []
    for (low, high), offset in zip(outer, starts, strict=False):
        first, last = max(start - offset, 0), min(stop - offset, high - low)
        if first < last:
            parts.append((int(low + first), int(low + last)))
    return parts


def wider(fmt: str, than: str) -> bool:
    """Whether ``fmt`` has more significand bits."""
    return SIGNIFICAND.get(fmt, 0) > SIGNIFICAND.get(than, 0)
