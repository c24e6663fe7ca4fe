"""Train one configuration from end to end, with a progress bar on a terminal."""

from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.training.run import run_events
from precision_lib.training.settings import PPOSettings
from precision_lib.training.signals import stop_requests
from precision_lib.training.summary import RunSummary


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
        tqdm(total=settings.max_steps, disable=None, unit="step", desc=name) as bar,
        closing(
            run_events(pipeline, configuration, settings, output_dir, resume=resume, stop=stop)
        ) as events,
    ):
        for event in events:
            if event["kind"] == "begin":
                bar.update(event["step"])
            elif event["kind"] == "step":
                line = event["line"]
                bar.update(1)
                bar.set_postfix_str(
                    f"reward {line['reward_mean']:.3g}, KL {line['kl_sequence_mean']:.3g}"
                )
            elif event["kind"] == "end":
                summary: RunSummary = event["summary"]
    return summary
