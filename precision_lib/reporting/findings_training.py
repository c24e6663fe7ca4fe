"""What a sweep's record says, as the tables of a document.

The hazard. A reward without its KL, or a difference without the one that chaos makes, is half a
finding: they stand in one row, and the twin in the table.
"""

from typing import Any

from precision_lib.reporting.commits import commit_of
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import two

Record = dict[str, Any]

#: Heading, metric, how its numbers are shown.
COLUMNS = (
    ("gain lost", "objective_gain_lost", ".0%"),
    ("reward", "reward_difference", "+.2f"),
    ("KL, nats per sequence", "kl_difference", "+.1f"),
    ("area between reward curves", "reward_area_difference", "+.2f"),
    ("distance of KL paths", "kl_path_distance", ".1f"),
    ("steps to half the gain", "steps_to_reward_difference", "+.0f"),
)


def training_tables(record: Record) -> str:
    """The tables of a document, from a record as ``sweep.json`` holds it.

    Raises:
        ValueError: nothing was compared in it.
    """
    evidence = record["evidence"]
    if evidence is None:
        raise ValueError(f"nothing was compared in this sweep: {record['not_compared']}")
    return "\n\n".join(
        [
            _made_from(record),
            "### Training: what each configuration reached",
            _reached(record),
            "### Training: against the FP32 baseline of the same seed",
            _cells(evidence),
            _chaos(evidence),
            _resolution(evidence["resolution"]),
            "### Training: hypotheses",
            _hypotheses(evidence),
            *(f"- {v['hypothesis']}: {v['explanation']}" for v in evidence["hypotheses"]),
        ]
    )


def _made_from(record: Record) -> str:
    context, settings = record["context"], record["settings"]
    seeds = sorted({run["seed"] for run in record["runs"]})
    seconds = sum(run.get("seconds", 0.0) for run in record["runs"])
    return (
        f"Sweep of commit {commit_of(context, 10)} on {context['device']['name']}, torch "
        f"{context['versions']['torch']}: {len(record['runs'])} runs of {record['max_steps']} "
        f"steps, seeds {', '.join(map(str, seeds))}; {settings['batch_size']} responses of up to "
        f"{settings['max_new_tokens']} tokens a step, learning rate "
        f"{settings['learning_rate']:g}, KL coefficient {settings['kl_coefficient']:g}; "
        f"{seconds / 3600:.1f} hours of steps, on a machine that did other work too."
    )


def _reached(record: Record) -> str:
    rows = []
    for name in dict.fromkeys(run["configuration"] for run in record["runs"]):
        runs = [r for r in record["runs"] if r["configuration"] == name and r.get("evaluation")]
        ends = [r["evaluation"]["final"] for r in runs]
        starts = [r["evaluation"]["initial"] for r in runs]
        gains = [
            (e["reward_mean"] - s["reward_mean"]) / s["reward_std"]
            for e, s in zip(ends, starts, strict=True)
        ]
        done = sum(r["status"] == "completed" for r in record["runs"] if r["configuration"] == name)
        of = sum(r["configuration"] == name for r in record["runs"])
        seconds = [r["final"]["step_seconds"] for r in runs]
        rows.append(
            [
                f"`{name}`",
                f"{done} of {of}",
                _mean([e["reward_mean"] for e in ends], ".2f"),
                _mean(gains, "+.2f"),
                _mean([e["kl_per_sequence"] for e in ends], ".1f"),
                _mean([e["entropy_mean"] for e in ends], ".2f"),
                _mean(seconds, ".2f"),
            ]
        )
    headings = ["configuration", "completed", "reward", "gain, std of the start"]
    return table([*headings, "KL, nats per sequence", "entropy", "s per step"], rows)


def _mean(values: list[float], form: str) -> str:
    return format(sum(values) / len(values), form) if values else "-"


def _cells(evidence: dict[str, Any]) -> str:
    rows = [
        [
            f"`{cell['configuration']}`",
            cell["verdict"] + _needed(cell["seeds_needed"]),
            *(_interval(cell["metrics"].get(metric), form) for _, metric, form in COLUMNS),
        ]
        for cell in evidence["cells"]
    ]
    return table(["configuration", "verdict", *(title for title, _, _ in COLUMNS)], rows)


def _needed(seeds: int | None) -> str:
    return f" ({seeds} seeds needed)" if seeds else ""


def _interval(metric: dict[str, Any] | None, form: str) -> str:
    if metric is None:
        return "-"
    value, low, high = (
        format(x, form) if isinstance(x, int | float) else "?"
        for x in (metric["value"], metric["low"], metric["high"])
    )
    return f"{value} [{low}, {high}]"


def _chaos(evidence: dict[str, Any]) -> str:
    chaos = evidence["chaos"]
    return (
        "Chaos: the baseline and its twin, one FP32 rounding apart at the start, end "
        f"{two(chaos['reward_difference'])} reward units and {two(chaos['kl_difference'])} nats "
        "per sequence apart (RMS over seeds); the baseline gains "
        f"{two(evidence['baseline_gain'])} in its objective."
    )


def _resolution(found: dict[str, Any]) -> str:
    """What a sweep of this size could have told."""
    if found["smallest_loss"] is None:
        return "What these seeds could have found is not known."
    seeds = found["seeds_for_no_loss"] or "more than 1,000"
    return (
        f"What these seeds can tell: with a probability of {found['power']:.0%} they find a loss "
        f"of {found['smallest_loss']:.0%} of the gain. To find that a configuration loses nothing "
        f"takes {seeds} seeds."
    )


def _hypotheses(evidence: dict[str, Any]) -> str:
    rows = []
    for verdict in evidence["hypotheses"]:
        null = "null" if verdict["control"]["is_null"] else "**not null**"
        exercised = evidence["exercised"][verdict["hypothesis"]]
        rows.append(
            [
                f"{verdict['hypothesis']} {verdict['title']}",
                verdict["verdict"],
                _interval(verdict["healed"], "+.0%"),
                null,
                "-" if exercised is None else f"{exercised:.1%}",
            ]
        )
    headings = ["hypothesis, in training", "verdict", "taken back by the promotion"]
    return table([*headings, "twin", "exercised"], rows)
