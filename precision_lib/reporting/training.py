"""What a person sees of a PPO run: how it ended, its reward and the KL that the reward cost."""

import math
from typing import Any

from precision_lib.forensics.statistics import Metric
from precision_lib.record.sweep import (
    Resolution,
    Sweep,
    TrainingCell,
    TrainingEvidence,
    TrainingVerdict,
)
from precision_lib.reporting.numbers import two
from precision_lib.reporting.styles import STYLES, Line


def summary_lines(summary: Any) -> list[str]:
    """A few lines about a :class:`training.summary.RunSummary`."""
    lines = [
        f"{summary.configuration}, seed {summary.seed}: {summary.status} after "
        f"{summary.last_step} of {summary.max_steps} steps"
        + (f" ({summary.reason})" if summary.reason else "")
    ]
    if summary.evaluation:
        before, after = (  # a figure that is not finite is its name in a summary: "nan"
            {name: float(x) for name, x in summary.evaluation[when].items()}
            for when in ("initial", "final")
        )
        gain = after["reward_mean"] - before["reward_mean"]
        deviations = gain / before["reward_std"] if before["reward_std"] else math.nan
        lines.append(
            f"FP32 evaluation: reward {two(before['reward_mean'])} -> "
            f"{two(after['reward_mean'])} ({deviations:+.2f} standard deviations), KL "
            f"{two(after['kl_per_sequence'])} nats per sequence, entropy "
            f"{two(before['entropy_mean'])} -> {two(after['entropy_mean'])} nats per token"
        )
    if summary.final.get("step_seconds"):
        lines.append(
            f"{two(summary.final['step_seconds'])} s per step, "
            f"{two(summary.final['tokens_per_second'])} response tokens per second"
        )
    mismatch = summary.final.get("rollout_logprob_abs_diff_mean")
    if mismatch is not None:
        final = float(summary.final["rollout_log_ratio_final"])
        lines.append(
            f"rollout mismatch: {two(float(mismatch))} nats per token, {two(final)} nats RMS over "
            "a response"
        )
    return lines


#: A cell lacks it where one of its runs never got there, all do where a baseline never rose.
LEVEL = "steps_to_reward_difference"
#: Heading, metric, how its number is shown.
_COLUMNS = (
    ("gain lost [95 %]", "objective_gain_lost", ".0%"),
    ("reward [95 %]", "reward_difference", "+.2f"),
    ("KL [95 %]", "kl_difference", "+.1f"),
    ("steps [95 %]", LEVEL, "+.0f"),
)


def sweep_lines(sweep: Sweep) -> list[Line]:
    """The result of a sweep: runs that failed, cells, verdicts."""
    runs = f"PPO sweep: {sweep.ended} of {len(sweep.runs)} runs ended, {sweep.max_steps} steps"
    lines: list[Line] = [(runs, "")]
    lines += [(f"FAILED {name}: {reason}", "red") for name, reason in sweep.failed.items()]
    evidence = sweep.evidence
    if evidence is None:
        return [*lines, (f"inconclusive: {sweep.not_compared}", "yellow")]
    seeds = ", ".join(map(str, evidence.seeds))
    lines += [
        (
            f"against fp32_baseline, paired over seeds {seeds}; it gained "
            f"{two(evidence.baseline_gain)} in its objective",
            "",
        ),
        ("", ""),
        *_training_cells(evidence),
        ("", ""),
        (f"impaired above {evidence.limit:.0%}: {evidence.meaning}", ""),
        ("fp32_twin is the baseline, started one rounding away: what it shows is chaos", ""),
        ("needs: so many seeds, if means and spread stayed what they are", ""),
        *_resolution(evidence.resolution),
        ("", ""),
    ]
    for verdict in evidence.hypotheses:
        lines += _training_verdict(verdict)
        lines += _exercised(evidence.exercised[verdict.hypothesis])
    return lines


def _resolution(found: Resolution) -> list[Line]:
    """What a sweep of this size could have told."""
    if found.smallest_loss is None:
        return []
    seeds = found.seeds_for_no_loss or "more than 1,000"
    return [
        (
            f"with probability {found.power:.0%} these seeds find a loss of "
            f"{found.smallest_loss:.0%}; to find that nothing is lost takes {seeds} seeds",
            "",
        )
    ]


def _exercised(share: float | None) -> list[Line]:
    if share is None:
        return []
    limit = "above the main job's limit"
    if share == 0:
        return [(f"Not exercised: in none of bf16_pure's steps was its damage {limit}.", "")]
    return [(f"Exercised: in {share:.1%} of bf16_pure's steps its damage was {limit}.", "")]


def _training_cells(evidence: TrainingEvidence) -> list[Line]:
    cells = evidence.cells
    names = max(len("configuration"), *(len(c.configuration) for c in cells))
    there_is_a_level = LEVEL in evidence.deviations
    rows = [[training_interval(c, metric, form) for _, metric, form in _COLUMNS] for c in cells]
    for cell, row in zip(cells, rows, strict=True):
        if there_is_a_level and cell.metrics and LEVEL not in cell.metrics:
            row[-1] = "not reached"
    widths = [
        max(len(title), *(len(row[i]) for row in rows)) for i, (title, _, _) in enumerate(_COLUMNS)
    ]
    heading = "configuration".ljust(names)
    heading += "".join(f"  {t:>{w}}" for (t, _, _), w in zip(_COLUMNS, widths, strict=True))
    lines: list[Line] = [(heading + "  verdict", "bold")]
    for cell, row in zip(cells, rows, strict=True):
        text = cell.configuration.ljust(names)
        text += "".join(f"  {x:>{w}}" for x, w in zip(row, widths, strict=True))
        more = f" (needs {cell.seeds_needed})" if cell.seeds_needed else ""
        lines.append((f"{text}  {cell.verdict}{more}", STYLES[cell.verdict]))
    return lines


def training_interval(cell: TrainingCell, name: str, form: str) -> str:
    """A metric of a cell with its interval; a dash where the cell lacks it."""
    metric = cell.metrics.get(name)
    return "-" if metric is None else formatted(metric, form)


def formatted(metric: Metric, form: str) -> str:
    """Value and interval in a format; ``?`` for what is not finite."""
    figures = metric.value, metric.low, metric.high
    value, low, high = (format(x, form) if math.isfinite(x) else "?" for x in figures)
    return f"{value} [{low}, {high}]"


_NULL = {True: "null, as it must be", False: "NOT NULL", None: "not compared, with one seed"}


def _training_verdict(verdict: TrainingVerdict) -> list[Line]:
    null = _NULL[verdict.control.is_null]
    needed = verdict.seeds_needed
    more = f"; {needed} seeds would decide" if needed else ""
    title = f"{verdict.hypothesis} {verdict.title}, in training: {verdict.verdict}"
    return [(f"{title} (twin {null}{more})", "bold"), (verdict.explanation, "")]
