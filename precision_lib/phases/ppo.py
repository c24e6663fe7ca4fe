"""Train one configuration from end to end, with a progress bar."""

import math
import sys
from contextlib import closing
from pathlib import Path

from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.reporting.bar import progress_bar
from precision_lib.training.events import Began, Ended, Stepped
from precision_lib.training.lines import StepLine
from precision_lib.training.run import run_events
from precision_lib.training.settings import PPOSettings
from precision_lib.training.signals import stop_requests
from precision_lib.training.summary import RunSummary


def kl_warning(before: float | None, line: StepLine, settings: PPOSettings) -> list[str]:
    """A warning where the KL per token rose in one step by more than the clip allows one token.

    The clip holds a token's log-prob within log(1 + clip_range) of where the step began. No sound
    step moves the mean of all tokens further.

    Args:
        before: KL of the step before, nats per sequence; None where there is none. line: the
            step's figures.
    """
    if before is None:
        return []
    rise = (line.learning.kl_sequence_mean - before) / settings.max_new_tokens
    if not rise > math.log1p(settings.clip_range):
        return []
    return [
        f"warning: step {line.step}: the KL rose by {rise:.2g} nats per token in one step; the "
        f"learning rate is too large, stop and give --learning_rate {settings.learning_rate / 10:g}"
    ]


def run_ppo(
    pipeline: Pipeline,
    configuration: PrecisionConfig,
    settings: PPOSettings,
    output_dir: Path,
    *,
    resume: bool = False,
) -> RunSummary:
    """:func:`training.run.run_events` with a bar; the summary. Raises what that raises."""
    name = f"ppo {configuration.name} seed {settings.seed}"
    with (
        stop_requests() as stop,
        progress_bar(name, "step", settings.max_steps) as bar,
        closing(
            run_events(pipeline, configuration, settings, output_dir, resume=resume, stop=stop)
        ) as events,
    ):
        before = None
        for event in events:
            if isinstance(event, Began):
                bar.update(event.step)
            elif isinstance(event, Stepped):
                bar.update(1)
                for warning in kl_warning(before, event.line, settings):
                    bar.write(warning, file=sys.stderr)
                reward, before = (
                    event.line.learning.reward_mean,
                    event.line.learning.kl_sequence_mean,
                )
                bar.set_postfix_str(f"reward {reward:.3g}, KL {before:.3g}")
            elif isinstance(event, Ended):
                summary = event.summary
    return summary
