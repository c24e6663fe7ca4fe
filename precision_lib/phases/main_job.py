"""The main job without pytest: every hypothesis in every configuration, on one set of models.

It uses the studies and the budget of ``pytest -m forensics``, and loads the models once.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from precision_lib.forensics.budget import Budget
from precision_lib.forensics.causal import Study
from precision_lib.forensics.frozen import Frozen, freeze_and_read
from precision_lib.forensics.h1.study import open_study
from precision_lib.forensics.h2.study import open_h2_study
from precision_lib.forensics.h3.study import open_h3_study
from precision_lib.forensics.h4.study import open_h4_study
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.records.context import run_context
from precision_lib.records.record import Recorder


def open_studies(
    pipeline: Pipeline, budget: Budget, configurations: Sequence[PrecisionConfig]
) -> tuple[Frozen, tuple[Study, ...]]:
    """The frozen trajectories, and the studies of H1 to H4, which measure when they are asked.

    Raises:
        ValueError: a budget that the models cannot hold.
    """
    with tempfile.TemporaryDirectory() as directory:
        frozen = freeze_and_read(pipeline, budget.freeze, Path(directory))
    return frozen, (
        open_study(pipeline.policy, budget.probe, configurations),
        open_h2_study(pipeline.reward, frozen.shards, budget.freeze.seed),
        open_h3_study(pipeline.policy, frozen.head, frozen.shards, budget.h3),
        open_h4_study(pipeline.policy, budget.h4, configurations),
    )


def run_main_job(
    pipeline: Pipeline,
    budget: Budget,
    configurations: Sequence[PrecisionConfig],
    path: Path,
    *,
    budget_name: str,
    seed: int,
    progress: Callable[[int], object] = lambda _: None,
) -> Recorder:
    """Measure all cells; the recorder that holds them. The record itself is not written.

    Args:
        path: of the record; ``cells.jsonl`` is written beside it as cells are finished.
        budget_name: what the context calls the budget, ``whole`` or ``quick``.
        progress: called with 1 after each cell.

    Raises:
        ValueError: a budget that the models cannot hold.
    """
    recorder = Recorder(path, configurations)
    recorder.expected = [(h, c.name) for h in ("H1", "H2", "H3", "H4") for c in configurations]
    recorder.context = run_context(str(pipeline.policy.model.device), seed) | {
        "checkpoint": {"name": pipeline.policy.name, "sha256": pipeline.policy.sha256},
        "budget": budget_name,
    }
    frozen, studies = open_studies(pipeline, budget, configurations)
    recorder.context |= frozen.context()
    for study in studies:
        recorder.context |= study.context()
        for configuration in configurations:
            recorder.add_cell(study.cell(configuration))
            progress(1)
    return recorder
