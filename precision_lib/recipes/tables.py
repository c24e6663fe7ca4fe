"""The tables of this folder, read from TOML once: costs, hardware, algorithms, frameworks."""

import tomllib
from functools import cache
from importlib import resources
from typing import Any

from precision_lib.forensics.operating import OperatingPoint


@cache
def table(name: str) -> dict[str, Any]:
    """``cost``, ``hardware``, ``algorithms`` or ``frameworks``, as its TOML file holds it."""
    text = resources.files("precision_lib.recipes").joinpath(f"{name}.toml")
    return tomllib.loads(text.read_text(encoding="utf-8"))


def operating_point(algorithm: str, length: int, kl: float) -> OperatingPoint:
    """The point of a user who trains with ``algorithm``.

    Raises:
        ValueError: an algorithm that the table does not hold, or a length or KL that cannot be.
    """
    algorithms = table("algorithms")
    if algorithm not in algorithms:
        raise ValueError(f"algorithm {algorithm!r} is unknown; known: {', '.join(algorithms)}")
    return OperatingPoint(algorithm, length, kl, **algorithms[algorithm])
