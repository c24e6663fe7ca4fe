"""What a calibration says, as lines: per cell the noise floor and the smallest regression found."""

from collections.abc import Mapping

from precision_lib.compare.directions import direction
from precision_lib.record.self_test import Calibration
from precision_lib.reporting.numbers import two
from precision_lib.reporting.styles import Line


def calibration_lines(result: Calibration) -> list[Line]:
    """Lines of a terminal table of ``calibration.json``, the damage metric of each cell."""
    names = max(
        [len(c) for cells in result.values.values() for c in cells]
        + [3 + len(t.metric) for t in result.thresholds.values()]
    )
    device = result.context.device_name
    varied = ", ".join(result.variations)
    lines: list[Line] = [(f"{device}: noise over {varied}", "")]
    for hypothesis, cells in result.values.items():
        metric = result.thresholds[hypothesis].metric
        heading = f"{hypothesis} {metric}".ljust(names)
        titles = f"{'now':>10}{'floor':>10}{'found from':>12}  sharpest"
        lines += [("", ""), (heading + titles, "bold")]
        for configuration, metrics in cells.items():
            floor = result.floors[hypothesis][configuration][metric]
            smallest = result.smallest[hypothesis][configuration][metric]
            shown = f"{two(metrics[metric]):>10}{two(floor):>10}{two(smallest):>12}"
            sharpest = _sharpest(hypothesis, metrics, result.smallest[hypothesis][configuration])
            lines.append((f"{configuration:<{names}}{shown}  {sharpest}", ""))
    note = (
        f"found from: a true value as bad as this is reported with a probability of "
        f"{result.power:.0%}, on another seed; on the baseline's own seed less is enough"
    )
    sharp = "sharpest: the error of which the smallest factor is found"
    return [*lines, ("", ""), (note, ""), (sharp, "")]


def _sharpest(hypothesis: str, values: Mapping[str, float], found: Mapping[str, float]) -> str:
    """The error of a cell that the gate sees best, and the factor that it finds."""
    factors = {
        name: max(found[name] / value, value / found[name])
        for name, value in values.items()
        if direction(hypothesis, name).scale == "ratio" and value > 0
    }
    if not factors:
        return ""
    name = min(factors, key=lambda n: factors[n])
    return f"{name}, from {two(factors[name])} times on"
