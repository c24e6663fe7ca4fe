"""How noisy this device is, and what the gate can therefore see.

The main job is run again as it was, in other batch shapes and, on the CPU, with other numbers of
threads. The largest difference of a metric between the first run and any other is its noise floor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from precision_lib.forensics.budget import budget
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.jsonio import write_json
from precision_lib.matrix import all_configurations
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.main_job import run_main_job
from precision_lib.records.baseline import load_baseline, summary_of, write_baseline
from precision_lib.records.cell_changes import noise_floor
from precision_lib.records.directions import direction
from precision_lib.records.inconclusive import foreign
from precision_lib.records.power import POWER, smallest_regression
from precision_lib.scoring.micro import batch_shapes_exchanged

SCHEMA = 1


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
) -> dict[str, Any]:
    """Measure the noise floor of every metric and state the smallest regression that is found.

    Args:
        progress: called with 1 after each cell.

    Returns:
        ``floors`` and ``smallest`` by hypothesis, configuration and metric; ``values``; the
        ``variations``, ``comparisons`` and the ``power``; ``context`` of the first run.
    """
    varied = variations(pipeline.policy.model.device.type)
    first = _run(pipeline, quick, seed, _AGAIN, progress)
    others = [_run(pipeline, quick, seed, variation, progress) for variation in varied]
    floors = _floors(first, others)
    baseline = summary_of(first) | {"calibration": {"floors": floors}}
    gated = [
        (cell["hypothesis"], cell["configuration"], name, metric)
        for cell in first["cells"]
        for name, metric in cell["metrics"].items()
        if direction(cell["hypothesis"], name).scale
    ]
    smallest: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for hypothesis, configuration, name, metric in gated:
        floor = noise_floor(hypothesis, configuration, name, first, baseline)
        found = smallest_regression(metric, direction(hypothesis, name), len(gated), floor)
        smallest.setdefault(hypothesis, {}).setdefault(configuration, {})[name] = found
        values.setdefault(hypothesis, {}).setdefault(configuration, {})[name] = metric["value"]
    return {
        "schema": SCHEMA,
        "context": first["context"],
        "variations": [variation.name for variation in varied],
        "power": POWER,
        "comparisons": len(gated),
        "thresholds": first["thresholds"],
        "values": values,
        "floors": floors,
        "smallest": smallest,
    }


def variation_cells(configurations: int, device: str) -> int:
    """Cells that :func:`calibrate` measures in all on a device of type ``cpu`` or ``cuda``."""
    return len(DECISIONS) * configurations * (1 + len(variations(device)))


def write_calibration(
    result: dict[str, Any], output_dir: Path, baseline_file: Path | None = None
) -> Path:
    """Write ``calibration.json``, and the floors into a baseline of the same device class.

    Raises:
        BaselineError: the baseline is missing or damaged. ValueError: it is of another device
        class.
    """
    if baseline_file is not None:
        baseline = load_baseline(baseline_file)
        apart = foreign({"context": result["context"], "cells": []}, baseline)
        if apart:
            raise ValueError(f"{baseline_file}: {'; '.join(apart)}: this noise says nothing of it")
        kept = {key: result[key] for key in ("variations", "floors")}
        write_baseline(baseline_file, baseline | {"calibration": kept})
    write_json(output_dir / "calibration.json", result)
    return output_dir / "calibration.json"


def _run(
    pipeline: Pipeline,
    quick: bool,
    seed: int,
    variation: Variation,
    progress: Callable[[int], object],
) -> dict[str, Any]:
    """The ``precision`` block of one run of the main job."""
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
        return recorder.block()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _floors(first: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Largest difference of each metric between the first run and any other.

    Of a damage metric also what its cell saw between two batch shapes. A critical magnitude that
    another run does not reach is not there, and has no difference.
    """
    floors: dict[str, Any] = {}
    for index, cell in enumerate(first["cells"]):
        here = floors.setdefault(cell["hypothesis"], {}).setdefault(cell["configuration"], {})
        for name, metric in cell["metrics"].items():
            found = [other["cells"][index]["metrics"].get(name, metric) for other in others]
            here[name] = max(abs(same["value"] - metric["value"]) for same in found)
        damage = first["thresholds"][cell["hypothesis"]]["metric"]
        here[damage] = max(here[damage], cell["evidence"]["batch_shift"])
    return floors
