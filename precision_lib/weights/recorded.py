"""A tensor of a manifest: the facts that were written, and None for all others."""

from collections.abc import Mapping
from math import prod
from typing import Any

from precision_lib.weights.statistics import STATISTICS, Statistics
from precision_lib.weights.tensors import Range, Tensor, columns_key, elements, part_key

FACTS = ("format", "shape", "sha256", "casts", "exact_in", "transposed", *STATISTICS)


class ManifestTensor:
    """A tensor of which only the recorded facts are known."""

    def __init__(self, name: str, facts: Mapping[str, Any]) -> None:
        lacking = [key for key in FACTS if key not in facts]
        if lacking:
            raise ValueError(f"{name} lacks {lacking[0]}")
        self.name, self.fmt = name, str(facts["format"])
        self.shape = tuple(int(n) for n in facts["shape"])
        self._facts = facts

    def digest(self, fmt: str) -> str | None:
        recorded = self._facts["sha256"] if fmt == self.fmt else self._facts["casts"].get(fmt)
        return None if recorded is None else str(recorded)

    def transposed_digest(self, fmt: str) -> str | None:
        recorded = self._facts["transposed"].get(fmt)
        return None if recorded is None else str(recorded)

    def exact_in(self, fmt: str) -> bool | None:
        if fmt == self.fmt:
            return True
        return fmt in self._facts["exact_in"] if fmt in self._facts["casts"] else None

    def statistics(self) -> Statistics:
        facts = self._facts
        sketch = tuple(float(value) for value in facts["sketch"])
        return Statistics(float(facts["norm"]), facts["zeros"], facts["nonfinite"], sketch)

    def nonfinite(self) -> int:
        return int(self._facts["nonfinite"])

    def codes(self) -> None:
        return None

    def changed_since(self, older: Tensor, fmt: str) -> float | None:
        """Recorded share of codes in ``fmt`` that are not those of ``older``; None for others."""
        changed = self._facts.get("changed", {})
        since = older.digest(self.fmt) if older.fmt == self.fmt else None
        if since is None or (changed.get("since"), changed.get("format")) != (since, fmt):
            return None
        return float(changed["share"])

    def part(self, ranges: tuple[Range, ...], shape: tuple[int, ...]) -> "ManifestTensor | None":
        if ranges == ((0, elements(self)),) and shape == self.shape:
            return self
        recorded = self._facts.get("parts", {}).get(part_key(ranges))
        if recorded is None or prod(recorded["shape"]) != prod(shape):
            return None
        return ManifestTensor(self.name, {**recorded, "shape": list(shape)})

    def columns(self, start: int, stop: int) -> "ManifestTensor | None":
        recorded = self._facts.get("parts", {}).get(columns_key(start, stop))
        return None if recorded is None else ManifestTensor(self.name, recorded)
