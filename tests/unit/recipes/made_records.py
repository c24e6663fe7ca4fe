"""Records with cells of every declared hypothesis, whose damage a test chooses."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from precision_lib.forensics.evidence import (
    BY_HYPOTHESIS,
    CurvePoint,
    Evidence,
    H1Evidence,
    H5Evidence,
)
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.hypothesis import BATCH_VARIANCE, Hypothesis
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell
from precision_lib.matrix import get_configuration
from precision_lib.recipes.shape import Shape
from precision_lib.record.context import Context, Model
from precision_lib.record.record import Record, nothing_measured

#: Response tokens and sequences of every sum; KL of every cell.
LENGTH, SEQUENCES, KL = 100, 8, 1e-4
#: Far below the limit, its whole interval above, and an interval on both sides of it.
HEALTHY, IMPAIRED, UNDECIDED = 0.01, 1.0, 0.32
SHAPE = Shape("made", 1000, 200, tied=True, trunk_linear=800, kv_numbers_per_token=64)


def figure(value: float, width: float = 0.2) -> Metric:
    """``value`` with an interval of so much of it to either side."""
    bounds = value * (1 - width), value * (1 + width)
    return Metric(value, *bounds, n=LENGTH * SEQUENCES, unit="units", clusters=SEQUENCES)


def made_cell(hypothesis: Hypothesis, configuration: str, damage: float) -> Cell:
    """A cell with that damage; the verdict that it states is of no matter."""
    metric = hypothesis.decision.metric
    metrics = {
        metric: figure(damage),
        f"batch_{metric}": figure(damage),
        BATCH_VARIANCE: figure(0.0),
        "accum_err_growth_exponent": figure(0.5),
    }
    if hypothesis.nonfinite:
        metrics[hypothesis.nonfinite] = figure(0.0)
    return Cell(hypothesis.name, configuration, "", metrics, _evidence(hypothesis, metric, damage))


def _evidence(hypothesis: Hypothesis, metric: str, damage: float) -> Evidence:
    kind = BY_HYPOTHESIS.get(hypothesis.name, Evidence)
    evidence = kind(true_kl=KL, golden_floor=figure(0.0))
    if isinstance(evidence, H1Evidence):
        points = (
            CurvePoint(kl, kl, {metric: figure(damage * (KL / kl) ** 0.5)}) for kl in (KL, 10 * KL)
        )
        return replace(evidence, curve=tuple(points))
    if isinstance(evidence, H5Evidence):
        return replace(evidence, rms_growth_exponent=figure(0.5))
    return evidence


def made_record(damages: Mapping[str, Mapping[str, float]], otherwise: float = HEALTHY) -> Record:
    """A record of the named configurations.

    Args:
        damages: configuration to hypothesis to its damage.
        otherwise: damage of the hypotheses that are not named.
    """
    cells = [
        made_cell(hypothesis, configuration, of.get(name, otherwise))
        for configuration, of in damages.items()
        for name, hypothesis in HYPOTHESES.items()
    ]
    matrix = {name: get_configuration(name).components for name in damages}
    context = Context(checkpoint=Model("embedded"), reward_model=Model("embedded"), budget="whole")
    empty = replace(nothing_measured(), run="made", context=context)
    return replace(empty, matrix=matrix, cells=tuple(cells))


def without(record: Record, hypothesis: str, configuration: str) -> Record:
    """The record without one cell."""
    left = (c for c in record.cells if c.key != (hypothesis, configuration))
    return replace(record, cells=tuple(left))


def changed(record: Record, hypothesis: str, configuration: str, **metrics: Any) -> Record:
    """The record with other metrics in one cell."""
    cells = (
        replace(c, metrics=dict(c.metrics) | metrics) if c.key == (hypothesis, configuration) else c
        for c in record.cells
    )
    return replace(record, cells=tuple(cells))
