"""How numbers are shown: two significant digits, with their interval where they have one."""

from typing import Any


def two(value: float) -> str:
    """Two significant digits, trailing zeros kept: 2.0, 63, 2.0e+02."""
    return f"{value:#.2g}".rstrip(".")


def interval(metric: dict[str, Any]) -> str:
    """Value and 95 % interval of a metric as it stands in a record."""
    return f"{two(metric['value'])} [{two(metric['low'])}, {two(metric['high'])}]"


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f} %"
