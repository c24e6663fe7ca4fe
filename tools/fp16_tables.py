"""What fp16 does to models, for docs/recipes.md: noise, overflow, and gradients that become 0."""

import math
from pathlib import Path
from typing import Any

from precision_lib.jsonio import load_object
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import DASH, percent, two
from tools.fp16 import RECIPES, SCALES, SCHEMA

Records = dict[str, dict[str, dict[str, Any]]]


def load_fp16(directory: Path) -> Records:
    """Model to what was measured to its record, in the order of the file names.

    Raises:
        ValueError: there is none, or a file is of something else; the message says what to do.
    """
    how = "`python -m tools.fp16 noise --json FILE` writes one"
    records: Records = {}
    for path in sorted(directory.glob("*.json")):
        record = load_object(path, "fp16", how)
        if record.get("schema") != SCHEMA:
            raise ValueError(f"{path} is no record of fp16 ({SCHEMA}); {how}")
        records.setdefault(record["context"]["model"], {})[record["what"]] = record
    if not records:
        raise ValueError(f"{directory} holds no record; {how}")
    return records


def fp16_table(records: Records) -> str:
    """A column per model: noise by recipe, the largest output, gradients by loss scale."""
    models = list(records.values())
    noise = [
        (f"noise/signal of `{name}` [95 %]", *(_noise(of, name) for of in models))
        for name in RECIPES
    ]
    parts = [
        parts_of(of["noise"]["noise"]["fp16_pure"]) if "noise" in of else None for of in models
    ]
    limit = f"{models[0]['range']['largest_finite']:,.0f}"
    largest = [of["range"]["largest_output"] for of in models]
    outputs = (f"{one['value']:,.0f} in `{one['module']}`" for one in largest)
    scales = [
        (
            f"gradients of {kind} that become 0, loss scale {scale:,.0f}",
            *(percent(_at(of, kind, scale)["zero_frac"]) for of in models),
        )
        for kind in models[0]["range"]["gradients"]
        for scale in SCALES
    ]
    over = [
        f"{sum(_at(of, k, SCALES[-1])['overflow'] for k in of['range']['gradients']):,}"
        for of in models
    ]
    rows = [
        *noise,
        (
            "log-ratio that `fp16_pure` keeps",
            *(percent(p[0]) if p else DASH for p in parts),
        ),
        (
            "noise/signal of `fp16_pure` beside that",
            *(two(p[1]) if p else DASH for p in parts),
        ),
        (f"largest output of a module (fp16 ends at {limit})", *outputs),
        *scales,
        (f"gradients that overflow, loss scale {SCALES[-1]:,.0f}", *over),
        (
            "*tokens that the gradient is the mean of*",
            *(f"{of['range']['tokens']}" for of in models),
        ),
    ]
    return table(["", *records], rows)


def parts_of(metrics: dict[str, Any]) -> tuple[float, float]:
    """(Slope b of the log-ratio on the true d, RMS n of the rest over that of d) of a recipe.

    A log-ratio b d + e, with e unrelated to d, has the mean square b^2 + n^2 and the squared error
    (1 - b)^2 + n^2, in those of d. For small d k3 is d^2/2. So its relative error gives the first,
    and noise over signal the second.
    """
    error2 = metrics["log_ratio_nsr"]["value"] ** 2
    kept = 1 + (metrics["kl_k3_rel_error"]["value"] - error2) / 2
    return kept, math.sqrt(max(error2 - (1 - kept) ** 2, 0.0))


def _noise(of: dict[str, dict[str, Any]], name: str) -> str:
    if "noise" not in of:
        return DASH
    figure = of["noise"]["noise"][name]["log_ratio_nsr"]
    return f"{two(figure['value'])} [{two(figure['low'])}, {two(figure['high'])}]"


def _at(of: dict[str, dict[str, Any]], kind: str, scale: float) -> dict[str, Any]:
    scales: list[dict[str, Any]] = of["range"]["gradients"][kind]["scales"]
    return next(one for one in scales if one["loss_scale"] == scale)
