"""How noisy this device is, and what the gate can therefore see.

The main job is run again as it was, in other batch shapes and, on the CPU, with other numbers of
threads. The largest difference of a metric between the first run and any other is its noise floor.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from precision_lib.compare.baseline import Calibrated, load_baseline, summary_of, write_baseline
from precision_lib.compare.cells import noise_floor
from precision_lib.compare.directions import direction
from precision_lib.compare.inconclusive import foreign_context
from precision_lib.compare.power import POWER, smallest_regression
from precision_lib.forensics.budget import budget
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.matrix import all_configurations
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.main_job import run_main_job
from precision_lib.record.files import write_result
from precision_lib.record.record import Record
from precision_lib.record.self_test import Calibration
from precision_lib.scoring.micro import batch_shapes_exchanged

#: Hypothesis, configuration and metric to a figure in the metric's unit.
Figured = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Variation:
    """How a run of the main job differs from the first, which has one thread.

    Attributes:
        name: for the record.
        threads: of the CPU.
        other_shapes: sequences in reversed order and in other micro-batches.
    """

    name: str
    threads: int = 1
    other_shapes: bool = False


_AGAIN = Variation("the same again")
_SHAPES = Variation("batch order and micro-batches", other_shapes=True)
_THREADS = tuple(Variation(f"{n} threads", threads=n) for n in (2, 4))


def variations(device: str) -> tuple[Variation, ...]:
    """What is varied on a device of type ``cpu`` or ``cuda``: threads do nothing to a GPU."""
    return (_AGAIN, _SHAPES, *(_THREADS if device == "cpu" else ()))


def calibrate(
    pipeline: Pipeline,
    *,
    quick: bool = False,
    seed: int = 0,
    progress: Callable[[int], object] = lambda _: None,
) -> Calibration:
    """Measure the noise floor of every metric and state the smallest regression that is found.

    Args:
        progress: called with 1 after each cell.
    """
    varied = variations(pipeline.policy.model.device.type)
    first = _run(pipeline, quick, seed, _AGAIN, progress)
    others = [_run(pipeline, quick, seed, variation, progress) for variation in varied]
    floors = _floors(first, others)
    baseline = replace(summary_of(first), calibration=Calibrated(floors))
    gated = [
        (*cell.key, name, metric)
        for cell in first.cells
        for name, metric in cell.metrics.items()
        if direction(cell.hypothesis, name).scale
    ]
    smallest: Figured = {}
    values: Figured = {}
    for hypothesis, configuration, name, metric in gated:
        floor = noise_floor(hypothesis, configuration, name, first, baseline)
        reach = smallest_regression(metric, direction(hypothesis, name), len(gated), floor)
        smallest.setdefault(hypothesis, {}).setdefault(configuration, {})[name] = reach
        values.setdefault(hypothesis, {}).setdefault(configuration, {})[name] = metric.value
    return Calibration(
        context=first.context,
        variations=tuple(variation.name for variation in varied),
        power=POWER,
        comparisons=len(gated),
        thresholds=first.thresholds,
        values=values,
        floors=floors,
        smallest=smallest,
    )


def variation_cells(configurations: int, device: str) -> int:
    """Cells that :func:`calibrate` measures in all on a device of type ``cpu`` or ``cuda``."""
    return len(DECISIONS) * configurations * (1 + len(variations(device)))


def write_calibration(
    result: Calibration, output_dir: Path, baseline_file: Path | None = None
) -> Path:
    """Write ``calibration.json``, and the floors into a baseline of the same device class.

    Raises:
        BaselineError: the baseline is missing or damaged. ValueError: it is of another device
        class.
    """
    if baseline_file is not None:
        baseline = load_baseline(baseline_file)
        apart = foreign_context(result.context, baseline)
        if apart:
            raise ValueError(f"{baseline_file}: {'; '.join(apart)}: this noise says nothing of it")
        calibration = Calibrated(result.floors, result.variations)
        write_baseline(baseline_file, replace(baseline, calibration=calibration))
    path = output_dir / "calibration.json"
    write_result(path, result, "calibration")
    return path


def _run(
    pipeline: Pipeline,
    quick: bool,
    seed: int,
    variation: Variation,
    progress: Callable[[int], object],
) -> Record:
    """The record of one run of the main job."""
    shapes = batch_shapes_exchanged() if variation.other_shapes else nullcontext()
    with TemporaryDirectory() as scratch, _threads(variation.threads), shapes:
        recorder = run_main_job(
            pipeline,
            budget(quick=quick, seed=seed),
            all_configurations(None),
            Path(scratch) / "report.json",
            budget_name="quick" if quick else "whole",
            progress=progress,
        )
        return recorder.record()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _floors(first: Record, others: Sequence[Record]) -> Figured:
    """Largest difference of each metric between the first run and any other.

    Of a damage metric also what its cell saw between two batch shapes. A critical magnitude that
    another run does not reach is not there, and has no difference.
    """
    floors: Figured = {}
    for index, cell in enumerate(first.cells):
        own = floors.setdefault(cell.hypothesis, {}).setdefault(cell.configuration, {})
        for name, metric in cell.metrics.items():
            same = [other.cells[index].metrics.get(name, metric) for other in others]
            own[name] = max(abs(other.value - metric.value) for other in same)
        damage = first.thresholds[cell.hypothesis].metric
        own[damage] = max(own[damage], cell.evidence.batch_shift or 0.0)
    return floors
