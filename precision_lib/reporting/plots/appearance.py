"""What all pictures share: colours, line styles, fonts, and how a figure becomes files.

Colours are those of Okabe and Ito, each with a line style and a marker. Figures are as wide as a
page with letters of 8 points. Files hold neither date nor random identifiers. Nothing here leaves a
setting of matplotlib changed.
"""

import functools
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Okabe and Ito, "Color Universal Design": told apart with every kind of colour vision.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#8C8C8C", "#F0E442")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
BASELINE, TWIN = "fp32_baseline", "fp32_twin"
LIMIT_COLOUR = "#D55E00"
#: Width of a figure in inches: that of a page.
WIDTH = 7.6
#: Arguments of ``axis.plot``: colour, style, width and marker of a line.
Look = dict[str, str | float]
_STYLE = {
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.markersize": 4.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "precision-forensics",
}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """``draw`` under the settings of this project, which end with it."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib as mpl

        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inside


def appearance(names: Sequence[str], *, markers: bool = False) -> dict[str, Look]:
    """Name to colour and line style; the baseline is black and thicker, its twin grey."""
    looks: dict[str, Look] = {}
    others = 0
    for place, name in enumerate(names):
        if name == BASELINE:
            looks[name] = {"color": "black", "linestyle": "-", "linewidth": 1.8}
        elif name == TWIN:
            looks[name] = {"color": "#8C8C8C", "linestyle": "--", "linewidth": 1.4}
        else:
            looks[name] = {
                "color": COLOURS[others % 6],
                "linestyle": STYLES[others % len(STYLES)],
                "linewidth": 1.2,
            }
            others += 1
        if markers:
            looks[name]["marker"] = MARKERS[place % len(MARKERS)]
    return looks


def new_figure(height: float, rows: int = 1, columns: int = 1, **given: Any) -> tuple[Any, Any]:
    """A figure of page width and ``height`` inches, and its [rows, columns] axes.

    ``given`` goes to ``Figure.subplots``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **given)


def legend_below(figure: Any, axis: Any, columns: int) -> None:
    """One legend for the whole figure, under it, of what ``axis`` shows."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def limit_line(axis: Any, limit: float, *, at: float = 0.02) -> None:
    """The decision limit as a horizontal dashed line, with its name above it.

    ``at``: where along the axis the name begins, as a share of its width.
    """
    axis.axhline(limit, color=LIMIT_COLOUR, linewidth=1, linestyle="--")
    axis.annotate(
        f"impaired above {limit:.2g}",
        (at, limit),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        color="#A84900",  # darker than the line, to be read
        fontsize=8,
    )


@styled
def rendered(figure: Any) -> dict[str, bytes]:
    """``png`` and ``svg`` of a figure; text stays text in the SVG, and it holds no date."""
    files = {}
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        content = BytesIO()
        figure.savefig(content, format=suffix, dpi=130, metadata=metadata)
        files[suffix] = content.getvalue()
    return files
