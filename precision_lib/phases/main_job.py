"""The main job: every hypothesis in every configuration, on one set of models.

pytest asks it for the cell that a test checks; commands let it measure all of them. Each study is
opened when it is first asked for. A cell that an ended run left behind is taken and not measured.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from precision_lib.forensics.budget import Budget
from precision_lib.forensics.causal import Study
from precision_lib.forensics.frozen import Frozen, freeze_and_read
from precision_lib.forensics.h1.study import H1Study, open_study
from precision_lib.forensics.h2.study import H2Study, open_h2_study
from precision_lib.forensics.h3.study import H3Study, open_h3_study
from precision_lib.forensics.h4.study import H4Study, open_h4_study
from precision_lib.forensics.verdicts import DECISIONS, Cell
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.grid import weights_on_grid
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.work import FREEZE
from precision_lib.records.context import run_context
from precision_lib.records.record import Recorder
from precision_lib.records.resume import continue_run, origin_of, say_origin
from precision_lib.trajectories.prompts import prompts_context

Opened = TypeVar("Opened", bound=Study)


@dataclass
class MainJob:
    """The studies of H1 to H4 on one set of models, and the recorder that holds their cells.

    Each raises ValueError when it is opened on a budget that the models cannot hold.

    Attributes:
        begins: called with ``freeze`` or ``H1`` to ``H4`` when that is opened.
    """

    pipeline: Pipeline
    budget: Budget
    recorder: Recorder
    begins: Callable[[str], object] = lambda _: None

    @cached_property
    def frozen(self) -> Frozen:
        """FP32 trajectories, frozen to disk and read back, with the value head that was used."""
        self.begins(FREEZE)
        with tempfile.TemporaryDirectory() as directory:
            frozen = freeze_and_read(self.pipeline, self.budget.freeze, Path(directory))
        self.recorder.context |= frozen.context()
        return frozen

    @cached_property
    def h1(self) -> H1Study:
        """H1 over the probe of this run."""
        given = self.pipeline.policy, self.budget.probe, self.recorder.configurations
        return self._opened("H1", lambda: open_study(*given))

    @cached_property
    def h2(self) -> H2Study:
        """H2 over the frozen trajectories."""
        given = self.pipeline.reward, self.frozen.shards, self.budget.freeze.seed
        return self._opened("H2", lambda: open_h2_study(*given))

    @cached_property
    def h3(self) -> H3Study:
        """H3 over the frozen trajectories."""
        given = self.pipeline.policy, self.frozen.head, self.frozen.shards, self.budget.h3
        return self._opened("H3", lambda: open_h3_study(*given))

    @cached_property
    def h4(self) -> H4Study:
        """H4 over long sequences of its own."""
        given = self.pipeline.policy, self.budget.h4, self.recorder.configurations
        return self._opened("H4", lambda: open_h4_study(*given))

    def _opened(self, hypothesis: str, open_it: Callable[[], Opened]) -> Opened:
        """A study with its context in the record and the cells that are finished."""
        self.begins(hypothesis)
        study = open_it()
        self.recorder.context |= study.context()
        for configuration in self.recorder.configurations:
            cell = self.recorder.earlier.get((hypothesis, configuration.name))
            if cell is not None:
                study.take(configuration, cell)
        return study

    def study(self, hypothesis: str) -> Study:
        """The study of ``H1`` to ``H4``."""
        study: Study = getattr(self, hypothesis.lower())
        return study

    def cell(self, hypothesis: str, configuration: PrecisionConfig) -> Cell:
        """A cell, which the recorder then holds; measured once."""
        cell = self.study(hypothesis).cell(configuration)
        self.recorder.add_cell(cell)
        return cell


def open_main_job(
    pipeline: Pipeline,
    budget: Budget,
    recorder: Recorder,
    *,
    budget_name: str,
    resume: bool = False,
) -> MainJob:
    """A main job whose context is in the recorder, and on disk what it is made from.

    Args:
        recorder: with its path, configurations and planted fault; nothing measured yet.
        budget_name: what the context calls the budget, ``whole`` or ``quick``.
        resume: take the finished cells of the last run of this record; without one, begin.

    Raises:
        ResumeError: the last run was made from something else.
    """
    device, seed = str(pipeline.policy.model.device), budget.probe.seed
    recorder.context = run_context(device, seed) | {
        "checkpoint": {"name": pipeline.policy.name, "sha256": pipeline.policy.sha256},
        "reward_model": {"name": pipeline.reward.name, "sha256": pipeline.reward.sha256},
        "prompts": prompts_context(pipeline.policy),
        "weights_on_grid": {"bf16": asdict(weights_on_grid(pipeline.policy.model, "bf16"))},
        "budget": budget_name,
    }
    origin = origin_of(recorder, pipeline, budget)
    if resume:
        continue_run(recorder, origin)
    if recorder.expected and not recorder.earlier:
        say_origin(recorder, origin)
    return MainJob(pipeline, budget, recorder)


def run_main_job(
    pipeline: Pipeline,
    budget: Budget,
    configurations: Sequence[PrecisionConfig],
    path: Path,
    *,
    budget_name: str,
    resume: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> Recorder:
    """Measure all cells and judge the hypotheses; the recorder, whose record is not written yet.

    Args:
        path: of the record; ``cells.jsonl`` is written beside it as cells are finished.
        budget_name, resume: as :func:`open_main_job` takes them.
        progress: called with 1 after each cell.

    Raises:
        ValueError: a budget that the models cannot hold. ResumeError: as ``open_main_job``.
    """
    recorder = Recorder(path, configurations)
    recorder.expected = [(h, c.name) for h in DECISIONS for c in configurations]
    job = open_main_job(pipeline, budget, recorder, budget_name=budget_name, resume=resume)
    recorder.begin()
    for hypothesis in DECISIONS:
        for configuration in configurations:
            job.cell(hypothesis, configuration)
            progress(1)
        recorder.add_hypothesis(job.study(hypothesis).verdict())
    return recorder
