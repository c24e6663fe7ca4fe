"""What a person sees of a PPO run.

The hazard. A last line that says "done" hides that the run ended early, and a reward without the KL
that it cost is half a figure.
"""

from typing import Any

from precision_lib.reporting.numbers import two


def summary_lines(summary: Any) -> list[str]:
    """A few lines about a :class:`training.summary.RunSummary`."""
    lines = [
        f"{summary.configuration}, seed {summary.seed}: {summary.status} after "
        f"{summary.last_step} of {summary.max_steps} steps"
        + (f" ({summary.reason})" if summary.reason else "")
    ]
    if summary.evaluation:
        before, after = summary.evaluation["initial"], summary.evaluation["final"]
        gain = (after["reward_mean"] - before["reward_mean"]) / before["reward_std"]
        lines.append(
            f"FP32 evaluation: reward {two(before['reward_mean'])} -> "
            f"{two(after['reward_mean'])} ({gain:+.2f} standard deviations), KL "
            f"{two(after['kl_per_sequence'])} nats per sequence, entropy "
            f"{two(before['entropy_mean'])} -> {two(after['entropy_mean'])} nats per token"
        )
    if summary.final.get("step_seconds"):
        lines.append(
            f"{two(summary.final['step_seconds'])} s per step, "
            f"{two(summary.final['tokens_per_second'])} response tokens per second"
        )
    return lines
