"""The main job: every hypothesis in every configuration, on one set of models.

pytest asks it for the cell that a test checks; commands let it measure all of them. Each study is
opened when it is first asked for. A cell that an ended run left behind is taken and not measured.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from precision_lib.forensics.budget import Budget
from precision_lib.forensics.damage.figures import PipelineDamage
from precision_lib.forensics.damage.measure import open_damage
from precision_lib.forensics.damage.work import USED
from precision_lib.forensics.frozen import Frozen, freeze_and_read
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.hypothesis import Given, Hypothesis
from precision_lib.forensics.study import Study
from precision_lib.forensics.verdicts import Cell
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.grid import weights_on_grid
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.work import DAMAGE, FREEZE
from precision_lib.record.context import run_context
from precision_lib.record.recorder import Recorder
from precision_lib.record.resume import continue_run, origin_of, say_origin
from precision_lib.trajectories.prompts import prompts_context


@dataclass
class MainJob:
    """The studies of all hypotheses on one set of models, and the recorder that holds their cells.

    Attributes:
        begins: called with ``freeze``, a hypothesis or ``damage`` when that is opened.
    """

    pipeline: Pipeline
    budget: Budget
    recorder: Recorder
    begins: Callable[[str], object] = lambda _: None
    _studies: dict[str, Study] = field(default_factory=dict)

    @cached_property
    def frozen(self) -> Frozen:
        """FP32 trajectories, frozen to disk and read back, with the value head that was used."""
        self.begins(FREEZE)
        with tempfile.TemporaryDirectory() as directory:
            frozen = freeze_and_read(self.pipeline, self.budget.freeze, Path(directory))
        self.recorder.context |= frozen.context()
        return frozen

    def study(self, hypothesis: str) -> Study:
        """The study of a hypothesis: with its context in the record, and the finished cells.

        Raises:
            ValueError: a budget that the models cannot hold.
        """
        if hypothesis not in self._studies:
            self._studies[hypothesis] = self._opened(HYPOTHESES[hypothesis])
        return self._studies[hypothesis]

    def _opened(self, hypothesis: Hypothesis) -> Study:
        frozen = self.frozen if hypothesis.on_trajectories else None
        self.begins(hypothesis.name)
        settings = self.budget.settings[hypothesis.name]
        configurations = self.recorder.configurations
        study = hypothesis.open(Given(self.pipeline, settings, configurations, frozen))
        self.recorder.context |= study.context()
        for configuration in configurations:
            cell = self.recorder.earlier.get((hypothesis.name, configuration.name))
            if cell is not None:
                study.take(configuration, cell)
        return study

    def cell(self, hypothesis: str, configuration: PrecisionConfig) -> Cell:
        """A cell, which the recorder then holds; measured once."""
        cell = self.study(hypothesis).cell(configuration)
        self.recorder.add_cell(cell)
        return cell

    def pipeline_damage(self) -> PipelineDamage:
        """A whole PPO step in every configuration, which the recorder then holds; measured once.

        It uses forwards of H1 and H2.
        """
        if self.recorder.pipeline_damage is None:
            opened = {name: self.study(name) for name in USED}
            self.begins(DAMAGE)
            count, asked = self.budget.step_sequences, self.recorder.configurations
            step = open_damage(self.pipeline, self.frozen, opened, tuple(asked), count)
            self.recorder.pipeline_damage = step.measure()
        return self.recorder.pipeline_damage


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
    device, seed = str(pipeline.policy.model.device), budget.seed
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
    damage: bool = False,
    progress: Callable[[int], object] = lambda _: None,
    begins: Callable[[str], object] = lambda _: None,
) -> Recorder:
    """Measure all cells and judge the hypotheses; the recorder, whose record is not written yet.

    Args:
        path: of the record; ``cells.jsonl`` is written beside it as cells are finished.
        budget_name, resume: as :func:`open_main_job` takes them.
        damage: measure a whole PPO step, too.
        progress: called with 1 after each cell. begins: as :class:`MainJob` takes it.

    Raises:
        ValueError: a budget that the models cannot hold. ResumeError: as ``open_main_job``.
    """
    recorder = Recorder(path, configurations)
    recorder.expected = [(h, c.name) for h in HYPOTHESES for c in configurations]
    job = open_main_job(pipeline, budget, recorder, budget_name=budget_name, resume=resume)
    job.begins = begins
    recorder.begin()
    for hypothesis in HYPOTHESES:
        for configuration in configurations:
            job.cell(hypothesis, configuration)
            progress(1)
        recorder.add_hypothesis(job.study(hypothesis).verdict())
    if damage:
        job.pipeline_damage()
    return recorder
