"""How noisy this device is, and what the gate can therefore see.

The main job is run again as it was and with other numbers of threads. Each metric's largest
difference is its noise floor. The order of a batch and its micro-batches vary inside each cell.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from precision_lib.forensics.budget import budget
from precision_lib.jsonio import write_json
from precision_lib.matrix import all_configurations
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.main_job import run_main_job
from precision_lib.records.baseline import load_baseline, summary_of, write_baseline
from precision_lib.records.cell_changes import noise_floor
from precision_lib.records.directions import direction
from precision_lib.records.obstacles import foreign
from precision_lib.records.power import POWER, smallest_regression

SCHEMA = 1
#: Numbers of threads of the runs that must not differ from the first, which has one.
THREADS = (1, 2, 4)


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
    first = _run(pipeline, quick, seed, 1, progress)
    others = [_run(pipeline, quick, seed, threads, progress) for threads in THREADS]
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
        "variations": [
            *("batch order", "micro-batch size"),
            *(f"{other['context']['threads']} threads" for other in others),
        ],
        "power": POWER,
        "comparisons": len(gated),
        "thresholds": first["thresholds"],
        "values": values,
        "floors": floors,
        "smallest": smallest,
    }


def variation_cells(configurations: int) -> int:
    """Cells that :func:`calibrate` measures in all."""
    return 4 * configurations * (1 + len(THREADS))


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
    pipeline: Pipeline, quick: bool, seed: int, threads: int, progress: Callable[[int], object]
) -> dict[str, Any]:
    """The ``precision`` block of one run of the main job."""
    with TemporaryDirectory() as scratch, _threads(threads):
        recorder = run_main_job(
            pipeline,
            budget(quick=quick, seed=seed),
            all_configurations(None),
            Path(scratch) / "report.json",
            budget_name="quick" if quick else "whole",
            seed=seed,
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

    Of a damage metric also what its cell found for other orders and sizes of a batch.
    """
    floors: dict[str, Any] = {}
    for index, cell in enumerate(first["cells"]):
        here = floors.setdefault(cell["hypothesis"], {}).setdefault(cell["configuration"], {})
        for name, metric in cell["metrics"].items():
            found = [other["cells"][index]["metrics"][name]["value"] for other in others]
            here[name] = max(abs(value - metric["value"]) for value in found)
        damage = first["thresholds"][cell["hypothesis"]]["metric"]
        here[damage] = max(here[damage], cell["evidence"]["noise_floor"]["value"])
    return floors
