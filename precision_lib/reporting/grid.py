"""One line about where the weights lie on the grid of a format, and a warning."""

from precision_lib.record.context import Context
from precision_lib.reporting.numbers import percent
from precision_lib.reporting.styles import Line

#: Share of half-way weights above which a summary warns: a continuous distribution has 2**-16.
HALFWAY_LIMIT = 0.01


def grid_lines(context: Context) -> list[Line]:
    """A line per format of ``weights_on_grid``; none for a record without it."""
    lines: list[Line] = []
    for fmt, shares in context.weights_on_grid.items():
        text = (
            f"weights: {percent(shares['exact'])} exactly representable in {fmt}, "
            f"{percent(shares['halfway'])} half-way between two numbers"
        )
        lines.append((text, ""))
        if shares["halfway"] > HALFWAY_LIMIT:
            lines.append(
                (
                    f"WARNING: above {percent(HALFWAY_LIMIT)} half-way, as a checkpoint from a "
                    f"quantised file: noise in {fmt} is exaggerated, use the original weights",
                    "yellow",
                )
            )
    return lines
