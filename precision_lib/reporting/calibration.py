"""What a calibration says, as lines: per cell the noise floor and the smallest regression found."""

from typing import Any

from precision_lib.records.directions import direction
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import two
from precision_lib.reporting.styles import Line


def calibration_lines(result: dict[str, Any]) -> list[Line]:
    """Lines of a terminal table, the damage metric of each cell.

    Args:
        result: as ``calibration.json`` holds it.
    """
    names = max(
        [len(c) for cells in result["values"].values() for c in cells]
        + [3 + len(t["metric"]) for t in result["thresholds"].values()]
    )
    device = result["context"]["device"]["name"]
    varied = ", ".join(result["variations"])
    lines: list[Line] = [(f"{device}: noise over {varied}", "")]
    for hypothesis, cells in result["values"].items():
        metric = result["thresholds"][hypothesis]["metric"]
        heading = f"{hypothesis} {metric}".ljust(names)
        titles = f"{'now':>10}{'floor':>10}{'found from':>12}  sharpest"
        lines += [("", ""), (heading + titles, "bold")]
        for configuration, metrics in cells.items():
            floor = result["floors"][hypothesis][configuration][metric]
            found = result["smallest"][hypothesis][configuration][metric]
            shown = f"{two(metrics[metric]):>10}{two(floor):>10}{two(found):>12}"
            sharpest = _sharpest(hypothesis, metrics, result["smallest"][hypothesis][configuration])
            lines.append((f"{configuration:<{names}}{shown}  {sharpest}", ""))
    note = (
        f"found from: a true value as bad as this is reported with a probability of "
        f"{result['power']:.0%}, on another seed; on the baseline's own seed less is enough"
    )
    sharp = "sharpest: the error of which the smallest factor is found"
    return [*lines, ("", ""), (note, ""), (sharp, "")]


def _sharpest(hypothesis: str, values: dict[str, float], found: dict[str, float]) -> str:
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


def calibration_table(result: dict[str, Any]) -> str:
    """Markdown: the gated errors of ``bf16_pure`` and ``fp32_baseline``, floor and reach."""
    rows = [
        (
            f"{hypothesis} `{name}`",
            configuration,
            two(value),
            two(result["floors"][hypothesis][configuration][name]),
            two(result["smallest"][hypothesis][configuration][name]),
        )
        for hypothesis, cells in result["values"].items()
        for configuration in ("bf16_pure", "fp32_baseline")
        for name, value in cells[configuration].items()
        if direction(hypothesis, name).scale == "ratio"
    ]
    headings = ("metric", "configuration", "now", "noise floor", "found from")
    varied = ", ".join(result["variations"])
    device, budget = result["context"]["device"]["name"], result["context"]["budget"]
    text = f"Measured on {device} ({budget} budget): {varied}."
    return f"{text}\n\n{table(headings, rows)}"
