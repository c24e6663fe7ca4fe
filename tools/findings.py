"""``python -m tools.findings``: what a record says, as the tables of a document.

The hazard. A finding that was copied by hand is wrong from the next measurement on, and nobody
notices. So the document's figures are made from a committed record by one command, and a test makes
them again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from precision_lib.compare.baseline import Baseline, BaselineError, load_baseline, summary_of
from precision_lib.exit_codes import OK, USAGE
from precision_lib.forensics.verdicts import Cell
from precision_lib.record.files import RecordError, load_record
from precision_lib.record.record import Record
from precision_lib.reporting.damage import HEADINGS, damage_notes, damage_rows, damage_title
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import interval, two
from precision_lib.reporting.table import summary
from tools import findings_tables
from tools.documents import MarkerError, write_between


def findings(record: Record, seeds: Sequence[Baseline] = ()) -> str:
    """The tables of a document: those of the record, and what other seeds say of its verdicts.

    Args:
        seeds: baselines that were made from runs with other seeds.
    """
    own = summary_of(record)
    _check_comparable(own, seeds)
    parts = [_made_from(record), "### Verdicts by cell", _cells(record), "### Hypotheses"]
    parts += [_hypotheses(record), *_explanations(record), *_error_budgets(record)]
    parts += whole_step(record)
    for name in dict.fromkeys(cell.hypothesis for cell in record.cells):
        tables = getattr(findings_tables, name.lower(), None)
        parts += tables(record) if tables else []
    if seeds:
        every = [own, *seeds]
        parts += ["### Other seeds", _seeds(every), *_text_drift(every)]
    return "\n\n".join(parts)


def _check_comparable(first: Baseline, seeds: Sequence[Baseline]) -> None:
    """Runs of other seeds must be of the same model, budget and cells, or nothing is compared.

    Raises:
        ValueError: naming the first that differs, by its place.
    """

    def of(baseline: Baseline) -> dict[str, object]:
        context = baseline.context
        return {
            "model": context.checkpoint and context.checkpoint.sha256,
            "budget": context.budget,
            "cells": sorted(_verdicts(baseline)),
        }

    for number, baseline in enumerate(seeds, 2):
        for name, wanted in of(first).items():
            if of(baseline)[name] != wanted:
                raise ValueError(
                    f"file {number} has another {name} than the first; give files of one model "
                    "and budget that measured the same cells, with different --seed"
                )


def _made_from(record: Record) -> str:
    context = record.context
    quick = ", --quick" if context.is_quick else ""
    return (
        f"Model `{context.model_name}`, {context.device_name}, seed {context.seed}{quick}, torch "
        f"{context.versions['torch']}, transformers {context.versions['transformers']}, commit "
        f"{context.commit_digits(12)}."
    )


def _cells(record: Record) -> str:
    by_key, hypotheses = record.by_key, record.measured_hypotheses
    rows = [
        [f"`{name}`", *(_cell(record, by_key.get((h, name))) for h in hypotheses)]
        for name in dict.fromkeys(cell.configuration for cell in record.cells)
    ]
    titles = [f"{h} `{record.thresholds[h].metric}`" for h in hypotheses]
    return table(["configuration", *titles], rows)


def _cell(record: Record, cell: Cell | None) -> str:
    if cell is None:
        return ""
    metric = cell.metrics[record.thresholds[cell.hypothesis].metric]
    verdict = cell.verdict if cell.verdict != "impaired" else "**impaired**"
    return f"{interval(metric)} {verdict}"


def _hypotheses(record: Record) -> str:
    rows = [
        [
            f"{h.hypothesis} {record.thresholds[h.hypothesis].title}",
            f"**{h.verdict}**",
            interval(h.contrasts["promotion_damage_healed"]),
            interval(h.contrasts["demotion_damage_added"]),
            "null" if h.control.is_null else "**NOT NULL**",
        ]
        for h in record.hypotheses
    ]
    removed, added = "damage removed by promotion, share", "damage added by demotion"
    return table(["", "verdict", removed, added, "controls"], rows)


def _error_budgets(record: Record) -> list[str]:
    """What each component makes of the damage in 16 bits; nothing for an earlier record."""
    rows = [
        [h.hypothesis, name, interval(share), two(budget.whole.value), two(budget.remaining.value)]
        for h in record.hypotheses
        if (budget := h.error_budget) is not None
        for name, share in budget.shares.items()
    ]
    headings = ["", "component", "its share (Shapley value)", "the whole", "left in FP32"]
    return ["### Error budget", table(headings, rows)] if rows else []


def whole_step(record: Record) -> list[str]:
    """What each configuration does to a PPO step; nothing for an earlier record."""
    damage = record.pipeline_damage
    if damage is None:
        return []
    rows = [[f"`{name}`", *figures] for name, *figures in damage_rows(damage)]
    title = f"{damage_title(damage)}. {' '.join(damage_notes(damage))}"
    return ["### A whole PPO step", title, table(HEADINGS, rows)]


def _explanations(record: Record) -> list[str]:
    return [f"- **{h.hypothesis}**: {h.explanation}" for h in record.hypotheses]


def _seeds(runs: Sequence[Baseline]) -> str:
    """Verdict and effect of each hypothesis for each seed."""
    hypotheses = list(runs[0].hypotheses)
    rows = []
    for run in runs:
        found = run.hypotheses
        shown = [
            f"{found[h].verdict}, {two(found[h].effect)}" if h in found else "" for h in hypotheses
        ]
        verdicts = _verdicts(run)
        same = sum(_verdicts(runs[0]).get(key) == verdict for key, verdict in verdicts.items())
        rows.append([str(run.context.seed), *shown, f"{same} of {len(verdicts)}"])
    titles = [f"{h}: verdict, share removed" for h in hypotheses]
    return table(["seed", *titles, "cells as with the first seed"], rows)


def _text_drift(runs: Sequence[Baseline]) -> list[str]:
    """Drift of a bf16 policy's log-probs on text that neither model wrote, seed by seed."""
    rows = []
    for run in runs:
        cell = run.cell("H4", "fp32_bf16_policy")
        if cell is not None and cell.text_drift:
            shown = [interval(cell.text_drift[k]) for k in ("seen", "expected_of_golden_tokens")]
            rows.append([str(run.context.seed), *shown])
    title = "Log-prob of a bf16 policy on text of neither model, nats per 1,000 tokens:"
    return [title, table(["seed", "drift seen", "-KL of FP32 from bf16"], rows)] if rows else []


def _verdicts(run: Baseline) -> dict[tuple[str, str], str]:
    return {(h, c): cell.verdict for h, cells in run.cells.items() for c, cell in cells.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables or put them between a document's markers."""
    options = _parser().parse_args(arguments)
    try:
        record = load_record(options.record)
        text = findings(record, [load_baseline(path) for path in options.seeds])
        if options.into is not None:
            write_between(options.into, "findings", text)
        if options.summary_into is not None:
            lines = "\n".join(line.rstrip() for line, _ in summary(record))
            write_between(options.summary_into, "summary", f"```\n{lines}\n```")
    except (BaselineError, RecordError, MarkerError, OSError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return USAGE
    if options.into is None:
        print(text)  # noqa: T201
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.findings")
    parser.add_argument(
        "record", type=Path, metavar="REPORT.json", help="what pytest -m forensics wrote"
    )
    parser.add_argument(
        "seeds", type=Path, nargs="*", metavar="BASELINE.json", help="of runs with other seeds"
    )
    parser.add_argument(
        "--into", type=Path, metavar="FILE.md", help="replace what stands between its markers"
    )
    parser.add_argument(
        "--summary-into",
        type=Path,
        metavar="FILE.md",
        help="put the summary of the first record between this file's markers",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
