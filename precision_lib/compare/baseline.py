"""Baselines: the reviewed metrics of one device class.

A baseline is sorted text with a metric to a line, in the shortest digits that give the same float64
back. It names device, models, matrix and budget, and how noisy the device was.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from precision_lib.compare.training import TrainingSummary, training_summary
from precision_lib.forensics.evidence import H4Evidence
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell
from precision_lib.jsonio import Json, parse_json, write_json
from precision_lib.record.codec import ShapeError, decode, encode
from precision_lib.record.conformance import Conformance
from precision_lib.record.context import Context
from precision_lib.record.files import SCHEMAS, version_of
from precision_lib.record.record import Matrix, Record
from precision_lib.record.self_test import Figures
from precision_lib.record.upgrade import upgrade_baseline

DIRECTORY = Path("baselines")


class BaselineError(ValueError):
    """A baseline cannot be made, read or written; the message says why and what to do."""


@dataclass(frozen=True)
class BaselineCell:
    """What a baseline keeps of a cell.

    Attributes:
        true_kl, batch_shift: of its evidence.
        text_drift: H4's drift on text of neither model, as seen and as expected.
    """

    verdict: str
    metrics: Mapping[str, Metric]
    true_kl: float | None = None
    batch_shift: float | None = None
    text_drift: Mapping[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True)
class BaselineHypothesis:
    """Verdict on a hypothesis, and the share of the damage that the promotion removes."""

    verdict: str
    effect: float


@dataclass(frozen=True)
class Calibrated:
    """Noise floors of a device: how each metric differed between variations of one run."""

    floors: Figures
    variations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Baseline:
    """The metrics that a run is compared with, by hypothesis and configuration."""

    device_class: str
    context: Context
    matrix: Matrix
    cells: Mapping[str, Mapping[str, BaselineCell]]
    conformance: Conformance | None
    training: TrainingSummary | None = None
    noise_floors: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    calibration: Calibrated | None = None
    hypotheses: Mapping[str, BaselineHypothesis] = field(default_factory=dict)

    def cell(self, hypothesis: str, configuration: str) -> BaselineCell | None:
        """A cell, None where the baseline does not hold it."""
        return self.cells.get(hypothesis, {}).get(configuration)

    def calibrated(self, hypothesis: str, configuration: str, metric: str) -> float:
        """Noise floor of a metric in its unit, 0 where it was not calibrated."""
        floors = self.calibration.floors if self.calibration else {}
        return floors.get(hypothesis, {}).get(configuration, {}).get(metric, 0.0)


def baseline_path(record: Record) -> Path:
    """``baselines/<device-class>.json`` for the device of a record of the whole main job.

    Raises:
        BaselineError: the record does not say which device it is of, or it is of a smaller job,
            whose baseline would take the place of the whole one's.
    """
    name, done = device_class(record.context), record.by_key.keys()
    whole = done and done >= {(h, c) for h in record.thresholds for c in record.matrix}
    if not whole or not record.conformance or record.context.is_quick:
        raise BaselineError(
            "a baseline of a part of the main job (--quick, --target, -k) or of a sweep needs "
            "--baseline FILE, or it would replace that of the whole"
        )
    return DIRECTORY / f"{name}.json"


def device_class(context: Context) -> str:
    """The device class of a record's or a baseline's context.

    Raises:
        BaselineError: there is none: nothing was measured.
    """
    if context.device is None or not context.device.device_class:
        raise BaselineError("the record names no device: it holds no measurement")
    return context.device.device_class


def baseline_of(record: Record) -> Baseline:
    """The baseline that a record makes.

    Raises:
        BaselineError: the run was broken on purpose, is not complete, or compared nothing.
    """
    if record.planted_fault:
        raise BaselineError(f"{record.planted_fault} was planted: this is not a measurement")
    if not (record.cells or record.conformance or record.training):
        raise BaselineError("the run measured nothing")
    training = record.training is None or record.training.complete
    if not training or (record.cells and not record.complete):
        raise BaselineError("the run is not complete: run it again, to its end")
    return summary_of(record)


def summary_of(record: Record) -> Baseline:
    """What a baseline keeps of a record, whatever that is worth."""
    cells: dict[str, dict[str, BaselineCell]] = {}
    floors: dict[str, dict[str, Metric]] = {}
    for cell in record.cells:
        cells.setdefault(cell.hypothesis, {})[cell.configuration] = _kept(cell)
        if cell.evidence.golden_floor is not None:
            of_hypothesis = floors.setdefault(cell.hypothesis, {})
            of_hypothesis[cell.configuration] = cell.evidence.golden_floor
    return Baseline(
        device_class=device_class(record.context),
        context=_compared(record.context),
        matrix=record.matrix,
        cells=cells,
        conformance=_core(record.conformance),
        training=training_summary(record.training),
        noise_floors=floors,
        hypotheses={
            h.hypothesis: BaselineHypothesis(h.verdict, h.effect) for h in record.hypotheses
        },
    )


def _compared(context: Context) -> Context:
    """A context without what says nothing about a difference."""
    keys = {hypothesis.context for hypothesis in HYPOTHESES.values()}
    return replace(
        context,
        platform=None,
        omp_num_threads=None,
        overrides={},
        reward_groups=None,
        more={key: value for key, value in context.more.items() if key in keys},
    )


def _kept(cell: Cell) -> BaselineCell:
    evidence, drift = cell.evidence, dict[str, Metric]()
    if isinstance(evidence, H4Evidence) and "text" in evidence.expected_policy_drift:
        metrics = evidence.expected_policy_drift["text"].metrics
        drift = {name: metrics[name] for name in ("seen", "expected_of_golden_tokens")}
    return BaselineCell(
        cell.verdict, cell.metrics, evidence.true_kl, evidence.batch_shift, text_drift=drift
    )


def _core(conformance: Conformance | None) -> Conformance | None:
    """What a baseline keeps of the checks of a core: the counts and which failed."""
    if conformance is None:
        return None
    functions = {
        name: replace(counts, ran=(), by_format={})
        for name, counts in conformance.functions.items()
    }
    return Conformance(conformance.target, conformance.profile, functions, seed=conformance.seed)


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write it as sorted text, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_json(path, {"schema": SCHEMAS["baseline"]} | encode(baseline), sort_keys=True)


def load_baseline(path: Path | str) -> Baseline:
    """Read a baseline and check that it is one.

    Raises:
        BaselineError: missing, truncated, not a baseline, or of a newer schema.
    """
    path = Path(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaselineError(
            f"baseline {path} does not exist; pytest with --update-baseline writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise BaselineError(f"baseline {path} cannot be read: {error}") from None
    wanted = {"schema", "device_class", "context", "matrix", "cells", "conformance"}
    if not isinstance(content, dict) or not wanted <= set(content):
        raise BaselineError(
            f"{path} is not a baseline; `pytest -m forensics --update-baseline` writes one"
        )
    try:
        version = version_of(content.pop("schema"), "baseline")
    except ValueError as error:
        raise BaselineError(f"baseline {path} {error}") from None
    try:
        baseline = baseline_from(content, version)
        _check_figures(baseline)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BaselineError(f"baseline {path} is damaged ({error}); make it again") from None
    return baseline


def baseline_from(content: Json, version: int) -> Baseline:
    """The baseline that a JSON object of a version of the layout holds; the object is used up.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it is damaged.
    """
    upgrade_baseline(content, version)
    return decode(Baseline, content)


def _check_figures(baseline: Baseline) -> None:
    """Every figure is a finite number with a sensible interval.

    Raises:
        ShapeError: one is not, or the baseline names no device class.
    """
    if not baseline.device_class:
        raise ShapeError("it names no device class")
    for hypothesis, cells in baseline.cells.items():
        for configuration, cell in cells.items():
            for name, m in cell.metrics.items():
                finite = all(map(math.isfinite, (m.low, m.value, m.high)))
                if not finite or m.low > m.high or m.n < 1:
                    raise ShapeError(f"{hypothesis} {configuration} {name} is {m}")
