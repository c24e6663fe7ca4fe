"""Wiring between pytest and the main job: its models, ``--resume``, what it says meanwhile.

A model that cannot be used, and a run that cannot be continued, are usage errors. The first is
known before the tests are collected. torch is imported only where a model is asked for.
"""

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from precision_lib.plugin import second_core
from precision_lib.plugin.gating import swept
from precision_lib.plugin.options import EMBEDDED
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.budget import Budget
    from precision_lib.models.pipeline import Pipeline
    from precision_lib.phases.main_job import MainJob

PIPELINE: pytest.StashKey["Pipeline"] = pytest.StashKey()
JOB: pytest.StashKey["MainJob"] = pytest.StashKey()


def check_models(config: pytest.Config) -> None:
    """Load models of the user's own, before anything is collected.

    Not for a sweep, which does so itself, nor for the tests of a core, which use no model.

    Raises:
        pytest.UsageError: a model or the prompts cannot be loaded, the budget does not fit them, or
            a sweep is given prompts.
    """
    option = config.getoption
    own = {option("model"), option("reward_model")} != {EMBEDDED} or _own_prompts(config)
    if swept(config) and _own_prompts(config):
        raise pytest.UsageError("--prompts: a sweep trains on the embedded prompts; leave it out")
    if own and not (config.option.collectonly or option("target") or swept(config)):
        config.stash[PIPELINE] = _load(config)


def main_job(config: pytest.Config, recorder: Recorder) -> "MainJob":
    """The main job of this run, opened once; with ``--resume`` it has the finished cells.

    Raises:
        pytest.UsageError: as :func:`check_models`, or the last run was made from something else.
    """
    if JOB not in config.stash:
        from precision_lib.phases.main_job import open_main_job
        from precision_lib.record.resume import ResumeError

        option = config.getoption
        try:
            config.stash[JOB] = open_main_job(
                config.stash[PIPELINE] if PIPELINE in config.stash else _load(config),
                _budget(config),
                recorder,
                budget_name="quick" if option("quick") else "whole",
                resume=option("resume"),
            )
        except ResumeError as error:
            raise pytest.UsageError(f"--resume: {error}") from None
    return config.stash[JOB]


def open_with_estimate(session: pytest.Session, recorder: Recorder) -> None:
    """Open the main job, say how long it takes, and show from now on how far it is.

    What a second process does beside this one does not count.

    Raises:
        pytest.UsageError: as :func:`main_job`.
    """
    config = session.config
    job = main_job(config, recorder)
    from precision_lib.phases.estimate import estimate_main_job
    from precision_lib.phases.progress import Meter, watched
    from precision_lib.plugin.progress_bar import ProgressBar

    hypotheses = {hypothesis for hypothesis, _ in recorder.expected}
    configurations = tuple(recorder.configurations)
    estimate = estimate_main_job(job.pipeline, job.budget, configurations, sorted(hypotheses))
    if second_core.is_wanted(config, recorder, job.pipeline):
        second_core.begin(session, recorder)
        estimate = estimate.without(second_core.HYPOTHESIS)
    shown = ProgressBar(config)
    shown.say(f"main job: {estimate.sentence()}")
    if recorder.earlier:
        shown.say(f"main job: {len(recorder.earlier)} finished cells of an ended run are taken")
    config.pluginmanager.register(shown)
    meter = Meter(estimate, shown.show)
    job.begins = meter.begin
    counting = ExitStack()
    counting.enter_context(watched(job.pipeline, meter))
    config.add_cleanup(counting.close)


def _own_prompts(config: pytest.Config) -> bool:
    return any(config.getoption(name) is not None for name in ("prompts", "chat_template"))


def _budget(config: pytest.Config) -> "Budget":
    from precision_lib.forensics.budget import budget

    return budget(quick=config.getoption("quick"), seed=config.getoption("seed"))


def _load(config: pytest.Config) -> "Pipeline":
    from precision_lib.models.loading import CheckpointError
    from precision_lib.models.pipeline import load_pipeline
    from precision_lib.trajectories.prompt_file import PromptsError, asking

    option = config.getoption
    device = "cuda" if option("gpu") else "cpu"
    try:
        pipeline = load_pipeline(option("model"), option("reward_model"), device=device)
        pipeline = asking(pipeline, option("prompts"), option("chat_template"))
        _budget(config).check_fits(pipeline.policy)
    except CheckpointError as error:
        raise pytest.UsageError(f"--model, --reward-model: {error}") from None
    except PromptsError as error:
        raise pytest.UsageError(f"--prompts: {error}") from None
    except ValueError as error:
        raise pytest.UsageError(f"--model: {error}") from None
    return pipeline
