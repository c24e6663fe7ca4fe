"""How numbers are shown: two significant digits, with their interval where they have one."""

from precision_lib.forensics.statistics import Metric

#: What stands where there is no number.
DASH = "–"


def two(value: float) -> str:
    """Two significant digits, trailing zeros kept: 2.0, 63, 2.0e+02."""
    return f"{value:#.2g}".rstrip(".")


def interval(metric: Metric) -> str:
    """Value and 95 % interval of a metric."""
    return f"{two(metric.value)} [{two(metric.low)}, {two(metric.high)}]"


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def shown(value: float | None) -> str:
    """A figure with two digits; a dash where there is none."""
    return DASH if value is None else two(value)


def with_interval(metric: Metric | None) -> str:
    """Value and 95 % interval; a dash where the cell lacks the metric."""
    return DASH if metric is None else interval(metric)


def share(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash where there is none."""
    return DASH if value is None else percent(value)
