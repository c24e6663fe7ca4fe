"""Recipes by cost and damage, with the Pareto front."""

from typing import Any

from precision_lib.forensics.causal import PURE
from precision_lib.forensics.verdicts import HEALTHY, IMPAIRED, INCONCLUSIVE
from precision_lib.recipes.answer import Answer
from precision_lib.recipes.choice import Recipe
from precision_lib.reporting.plots.appearance import COLOURS, limit_line, new_figure, styled
from precision_lib.reporting.plots.picture import Picture, Table
from precision_lib.reporting.recommendation import headings, rows, sentences

NAME = "recommendation"
_LOOKS = {
    HEALTHY: {"color": COLOURS[2], "marker": "o"},
    INCONCLUSIVE: {"color": COLOURS[0], "marker": "D"},
    IMPAIRED: {"color": COLOURS[4], "marker": "X"},
}
_AXES = {
    "time": "time of the matrix products, bf16_pure = 1",
    "memory": "bytes per policy parameter",
}


def recommendation_picture(given: Answer) -> Picture:
    """The worst damage of each recipe over its limit, against its cost."""
    return Picture(
        NAME,
        _figure(given),
        "Worst damage of each recipe as a multiple of its limit, against its cost. Named are "
        "bf16_pure and the recipes on the Pareto front, which the steps join; the chosen one in "
        "bold.",
        " ".join(sentences(given)),
        Table(headings(given), tuple(rows(given))),
    )


@styled
def _figure(given: Answer) -> Any:
    figure, axes = new_figure(4.2)
    axis = axes[0][0]
    drawn = [r for r in given.choice.recipes if r.cost.time is not None and r.worst_over_limit]
    for verdict, look in _LOOKS.items():
        points = [_place(r, given.by) for r in drawn if r.verdict == verdict]
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, y, linestyle="", label=verdict, **look)
    front = sorted(_place(r, given.by) for r in drawn if r.name in given.choice.front)
    if front:
        steps = {"color": "black", "linewidth": 0.8, "drawstyle": "steps-post", "zorder": 0}
        axis.plot(*zip(*front, strict=True), label="Pareto front", **steps)
    axis.set(xscale="log" if given.by == "time" else "linear", yscale="log")
    chosen = given.choice.chosen.name if given.choice.chosen else ""
    middle = sum(place[0] for place in front) / max(len(front), 1)
    for place, names in _labels(drawn, given).items():
        weight, right = "bold" if chosen in names else "normal", place[0] > middle
        beside = {"xytext": (-5 if right else 5, 5), "textcoords": "offset points"}
        beside |= {"ha": "right" if right else "left", "weight": weight}
        axis.annotate(", ".join(names), place, fontsize=7, **beside)
    limit_line(axis, 1.0, at=0.45)
    axis.set(xlabel=_AXES[given.by], ylabel="worst damage over its limit")
    axis.margins(x=0.2, y=0.1)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _place(recipe: Recipe, by: str) -> tuple[float, float]:
    return recipe.price(by)[0], recipe.worst_over_limit or 0.0


def _labels(drawn: list[Recipe], given: Answer) -> dict[tuple[float, float], list[str]]:
    """Place to the names that are written there: ``bf16_pure`` and the front."""
    labels: dict[tuple[float, float], list[str]] = {}
    for recipe in drawn:
        if recipe.name == PURE.name or recipe.name in given.choice.front:
            labels.setdefault(_place(recipe, given.by), []).append(recipe.name)
    return labels
