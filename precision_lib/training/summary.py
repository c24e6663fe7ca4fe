"""RunSummary: how a run ended and what it reached, as one strict JSON file.

It is written when a run ends, in whatever way. A directory without one was killed.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from precision_lib.jsonio import Json, write_json
from precision_lib.training.failures import STATUSES
from precision_lib.training.lines import Figures, numbers

SCHEMA = "precision-forensics/ppo-run/1"
SUMMARY = "summary.json"
#: Steps over which a figure is averaged before it is called reached.
WINDOW = 10
#: Figures of the last window of steps that a summary shows.
FINAL_FIGURES = (
    "reward_mean",
    "reward_std",
    "kl_sequence_mean",
    "kl_k1_mean",
    "kl_penalty_mean",
    "entropy_mean",
    "explained_variance",
    "clip_frac",
    "weights_moved_frac",
    "log_ratio_near_zero_frac",
    "log_ratio_nsr",
    "score_tie_frac",
    "values_unchanged_frac",
    "gae_rms_error",
    "accum_err_final",
    *("rollout_logprob_abs_diff_mean", "rollout_log_ratio_final"),
    "step_seconds",
    "tokens_per_second",
)


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        status: of the failure taxonomy. reason: what was seen; "" when completed.
        configuration: name. formats: component to format. seed: of the run.
        observed_formats: component to format as seen in the first step.
        last_step: number of steps done. max_steps: asked for.
        best: ``reward_mean`` and ``step`` of the best window of steps.
        final: means over the last window of steps.
        evaluation: FP32 figures before training (``initial``) and after (``final``).
        skipped_updates: of all steps.
        weights_sha256: of the FP32 masters at the end.
        identity: settings, models, versions.
        context: machine and versions, see ``records/context.py``.
        seconds: spent on steps, this and earlier sessions.
    """

    status: str
    reason: str
    configuration: str
    formats: dict[str, str]
    seed: int
    observed_formats: dict[str, str]
    last_step: int
    max_steps: int
    best: dict[str, float | None]
    final: dict[str, float | None]
    evaluation: dict[str, dict[str, float]]
    skipped_updates: int
    weights_sha256: str
    identity: dict[str, Json]
    context: dict[str, Json]
    seconds: float


class SummaryError(RuntimeError):
    """A summary cannot be read; the message names the file and what to do."""


def write_summary(directory: Path, summary: RunSummary) -> None:
    """Write ``summary.json``, whole or not at all."""
    write_json(directory / SUMMARY, {"schema": SCHEMA} | asdict(summary))


def read_summary(directory: Path) -> RunSummary | None:
    """The summary in ``directory``, None when the run there has not ended.

    Raises:
        SummaryError: truncated, altered or of another schema.
    """
    path = directory / SUMMARY
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SummaryError(f"{path} cannot be read ({error}); delete it and resume") from None
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise SummaryError(f"{path} is not a summary of a PPO run; give another directory")
    if content.get("status") not in STATUSES:
        raise SummaryError(f"{path} has the unknown status {content.get('status')!r}")
    try:
        return RunSummary(**content)
    except TypeError as error:
        raise SummaryError(f"{path} is not whole: {error}; delete it and resume") from None


def window_mean(lines: list[Figures], name: str) -> float | None:
    """Mean of a figure over lines, those left out that have none."""
    figures = numbers(lines, name)
    return sum(figures) / len(figures) if figures else None


def last_window(lines: list[Figures]) -> dict[str, float | None]:
    """Name to the mean of each of :data:`FINAL_FIGURES` over the last window."""
    return {name: window_mean(lines[-WINDOW:], name) for name in FINAL_FIGURES}


def best_window(lines: list[Figures]) -> dict[str, float | None]:
    """The highest mean reward over :data:`WINDOW` consecutive steps, and the step it ends at."""
    width = min(WINDOW, len(lines))
    ends = range(width, len(lines) + 1) if lines else ()
    rewards = ((numbers(lines[end - width : end], "reward_mean"), end - 1) for end in ends)
    means = [(sum(window) / width, end) for window, end in rewards if len(window) == width]
    reward, end = max(means, default=(None, None))
    return {"reward_mean": reward, "step": end}
