"""What a sweep's record says, as the tables of a document.

The hazard. A reward without its KL, or a difference without the one that chaos makes, is half a
finding: they stand in one row, and the twin in the table.
"""

from precision_lib.record.sweep import Resolution, Sweep, TrainingEvidence
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import two
from precision_lib.reporting.training import formatted, training_interval

#: Heading, metric, how its numbers are shown.
COLUMNS = (
    ("gain lost", "objective_gain_lost", ".0%"),
    ("reward", "reward_difference", "+.2f"),
    ("KL, nats per sequence", "kl_difference", "+.1f"),
    ("area between reward curves", "reward_area_difference", "+.2f"),
    ("distance of KL paths", "kl_path_distance", ".1f"),
    ("steps to half the gain", "steps_to_reward_difference", "+.0f"),
)


def training_tables(sweep: Sweep) -> str:
    """The tables of a document, from a sweep.

    Raises:
        ValueError: nothing was compared in it.
    """
    evidence = sweep.evidence
    if evidence is None:
        raise ValueError(f"nothing was compared in this sweep: {sweep.not_compared}")
    return "\n\n".join(
        [
            _made_from(sweep),
            "### Training: what each configuration reached",
            _reached(sweep),
            "### Training: against the FP32 baseline of the same seed",
            _cells(evidence),
            _chaos(evidence),
            _resolution(evidence.resolution),
            "### Training: hypotheses",
            _hypotheses(evidence),
            *(f"- {v.hypothesis}: {v.explanation}" for v in evidence.hypotheses),
        ]
    )


def _made_from(sweep: Sweep) -> str:
    context, settings = sweep.context, sweep.settings
    seeds = sorted({run.seed for run in sweep.runs})
    seconds = sum(run.seconds for run in sweep.runs)
    return (
        f"Sweep of commit {context.commit_digits(10)} on {context.device_name}, torch "
        f"{context.versions['torch']}: {len(sweep.runs)} runs of {sweep.max_steps} "
        f"steps, seeds {', '.join(map(str, seeds))}; {settings.batch_size} responses of up to "
        f"{settings.max_new_tokens} tokens a step, learning rate "
        f"{settings.learning_rate:g}, KL coefficient {settings.kl_coefficient:g}; "
        f"{seconds / 3600:.1f} hours of steps, on a machine that did other work too."
    )


def _reached(sweep: Sweep) -> str:
    rows = []
    for name in dict.fromkeys(run.configuration for run in sweep.runs):
        runs = [run for run in sweep.runs if run.configuration == name]
        evaluated = [run.evaluation for run in runs if run.evaluation]
        ends = [evaluation.final for evaluation in evaluated]
        gains = [
            (e.final.reward_mean - e.initial.reward_mean) / e.initial.reward_std for e in evaluated
        ]
        seconds = [run.final["step_seconds"] or 0.0 for run in runs if run.evaluation]
        done = sum(run.status == "completed" for run in runs)
        rows.append(
            [
                f"`{name}`",
                f"{done} of {len(runs)}",
                _mean([e.reward_mean for e in ends], ".2f"),
                _mean(gains, "+.2f"),
                _mean([e.kl_per_sequence for e in ends], ".1f"),
                _mean([e.entropy_mean for e in ends], ".2f"),
                _mean(seconds, ".2f"),
            ]
        )
    headings = ["configuration", "completed", "reward", "gain, std of the start"]
    return table([*headings, "KL, nats per sequence", "entropy", "s per step"], rows)


def _mean(values: list[float], form: str) -> str:
    return format(sum(values) / len(values), form) if values else "-"


def _cells(evidence: TrainingEvidence) -> str:
    rows = [
        [
            f"`{cell.configuration}`",
            cell.verdict + _needed(cell.seeds_needed),
            *(training_interval(cell, metric, form) for _, metric, form in COLUMNS),
        ]
        for cell in evidence.cells
    ]
    return table(["configuration", "verdict", *(title for title, _, _ in COLUMNS)], rows)


def _needed(seeds: int | None) -> str:
    return f" ({seeds} seeds needed)" if seeds else ""


def _chaos(evidence: TrainingEvidence) -> str:
    chaos = evidence.chaos
    return (
        "Chaos: the baseline and its twin, one FP32 rounding apart at the start, end "
        f"{two(chaos['reward_difference'])} reward units and {two(chaos['kl_difference'])} nats "
        "per sequence apart (RMS over seeds); the baseline gains "
        f"{two(evidence.baseline_gain)} in its objective."
    )


def _resolution(found: Resolution) -> str:
    """What a sweep of this size could have told."""
    if found.smallest_loss is None:
        return "What these seeds could have found is not known."
    seeds = found.seeds_for_no_loss or "more than 1,000"
    return (
        f"What these seeds can tell: with a probability of {found.power:.0%} they find a loss "
        f"of {found.smallest_loss:.0%} of the gain. To find that a configuration loses nothing "
        f"takes {seeds} seeds."
    )


def _hypotheses(evidence: TrainingEvidence) -> str:
    rows = []
    for verdict in evidence.hypotheses:
        null = "null" if verdict.control.is_null else "**not null**"
        exercised = evidence.exercised[verdict.hypothesis]
        rows.append(
            [
                f"{verdict.hypothesis} {verdict.title}",
                verdict.verdict,
                formatted(verdict.healed, "+.0%") if verdict.healed else "-",
                null,
                "-" if exercised is None else f"{exercised:.1%}",
            ]
        )
    headings = ["hypothesis, in training", "verdict", "taken back by the promotion"]
    return table([*headings, "twin", "exercised"], rows)
