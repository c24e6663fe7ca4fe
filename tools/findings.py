"""``python -m tools.findings``: what a record says, as the tables of a document.

The hazard. A finding that was copied by hand is wrong from the next measurement on, and nobody
notices. So the document's figures are made from a committed record by one command, and a test makes
them again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precision_lib.exit_codes import OK, USAGE
from precision_lib.records.record import RecordError, load_record
from precision_lib.reporting.commits import commit_of
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import interval, two
from precision_lib.reporting.table import summary
from tools import findings_tables
from tools.documents import MarkerError, write_between

Block = dict[str, Any]


def findings(blocks: Sequence[Block]) -> str:
    """The tables of a document: those of the first record, and what the others say of its verdicts.

    Args:
        blocks: ``precision`` blocks of records of different seeds.
    """
    first = blocks[0]
    _check_comparable(blocks)
    parts = [_made_from(first), "### Verdicts by cell", _cells(first), "### Hypotheses"]
    parts += [_hypotheses(first), *_explanations(first)]
    for name in dict.fromkeys(c["hypothesis"] for c in first["cells"]):
        tables = getattr(findings_tables, name.lower(), None)
        parts += tables(first) if tables else []
    if len(blocks) > 1:
        parts += ["### Other seeds", _seeds(blocks), *_text_drift(blocks)]
    return "\n\n".join(parts)


def _check_comparable(blocks: Sequence[Block]) -> None:
    """Records of other seeds must be of the same model, budget and cells, or nothing is compared.

    Raises:
        ValueError: naming the first record that differs, by its place.
    """

    def of(block: Block) -> dict[str, Any]:
        context = block["context"]
        return {
            "model": context.get("checkpoint", {}).get("sha256"),
            "budget": context.get("budget"),
            "cells": sorted(_verdicts(block)),
        }

    for number, block in enumerate(blocks[1:], 2):
        for name, wanted in of(blocks[0]).items():
            if of(block)[name] != wanted:
                raise ValueError(
                    f"record {number} has another {name} than the first; give records of one model "
                    "and budget that measured the same cells, with different --seed"
                )


def _made_from(block: Block) -> str:
    context = block["context"]
    quick = ", --quick" if context.get("budget") == "quick" else ""
    versions, checkpoint = context["versions"], context.get("checkpoint", {"name": "unknown"})
    return (
        f"Model `{checkpoint['name']}`, {context['device']['name']}, seed "
        f"{context['seed']}{quick}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, commit {commit_of(context, 12)}."
    )


def _cells(block: Block) -> str:
    found = {(c["hypothesis"], c["configuration"]): c for c in block["cells"]}
    hypotheses = sorted({h for h, _ in found})
    rows = [
        [f"`{name}`", *(_cell(block, found.get((h, name))) for h in hypotheses)]
        for name in dict.fromkeys(c["configuration"] for c in block["cells"])
    ]
    titles = [f"{h} `{block['thresholds'][h]['metric']}`" for h in hypotheses]
    return table(["configuration", *titles], rows)


def _cell(block: Block, cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    metric = cell["metrics"][block["thresholds"][cell["hypothesis"]]["metric"]]
    verdict = cell["verdict"] if cell["verdict"] != "impaired" else "**impaired**"
    return f"{interval(metric)} {verdict}"


def _hypotheses(block: Block) -> str:
    rows = []
    for h in block["hypotheses"]:
        title = block["thresholds"][h["hypothesis"]]["title"]
        contrasts = h["contrasts"]
        rows.append(
            [
                f"{h['hypothesis']} {title}",
                f"**{h['verdict']}**",
                interval(contrasts["promotion_damage_healed"]),
                interval(contrasts["demotion_damage_added"]),
                "null" if h["control"]["is_null"] else "**NOT NULL**",
            ]
        )
    return table(
        [
            "",
            "verdict",
            "damage removed by promotion, share",
            "damage added by demotion",
            "controls",
        ],
        rows,
    )


def _explanations(block: Block) -> list[str]:
    return [f"- **{h['hypothesis']}**: {h['explanation']}" for h in block["hypotheses"]]


def _seeds(blocks: Sequence[Block]) -> str:
    """Verdict and effect of each hypothesis for each seed."""
    hypotheses = [h["hypothesis"] for h in blocks[0]["hypotheses"]]
    rows = []
    for block in blocks:
        found = {h["hypothesis"]: h for h in block["hypotheses"]}
        shown = [
            f"{found[h]['verdict']}, {two(found[h]['effect'])}" if h in found else ""
            for h in hypotheses
        ]
        same = sum(_verdicts(blocks[0]).get(key) == v for key, v in _verdicts(block).items())
        rows.append([str(block["context"]["seed"]), *shown, f"{same} of {len(block['cells'])}"])
    titles = [f"{h}: verdict, share removed" for h in hypotheses]
    return table(["seed", *titles, "cells as with the first seed"], rows)


def _text_drift(blocks: Sequence[Block]) -> list[str]:
    """Drift of a bf16 policy's log-probs on text that neither model wrote, seed by seed."""
    rows = []
    for block in blocks:
        for cell in block["cells"]:
            if (cell["hypothesis"], cell["configuration"]) == ("H4", "fp32_bf16_policy"):
                found = cell["evidence"]["expected_policy_drift"]["text"]
                shown = [interval(found[k]) for k in ("seen", "expected_of_golden_tokens")]
                rows.append([str(block["context"]["seed"]), *shown])
    title = "Log-prob of a bf16 policy on text of neither model, nats per 1,000 tokens:"
    return [title, table(["seed", "drift seen", "-KL of FP32 from bf16"], rows)] if rows else []


def _verdicts(block: Block) -> dict[tuple[str, str], str]:
    return {(c["hypothesis"], c["configuration"]): c["verdict"] for c in block["cells"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables or put them between a document's markers."""
    options = _parser().parse_args(arguments)
    try:
        blocks = [load_record(path)["precision"] for path in options.records]
        text = findings(blocks)
        if options.into is not None:
            write_between(options.into, "findings", text)
        if options.summary_into is not None:
            lines = "\n".join(line.rstrip() for line, _ in summary(blocks[0]))
            write_between(options.summary_into, "summary", f"```\n{lines}\n```")
    except (RecordError, MarkerError, OSError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return USAGE
    if options.into is None:
        print(text)  # noqa: T201
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.findings")
    parser.add_argument(
        "records",
        type=Path,
        nargs="+",
        metavar="REPORT.json",
        help="what pytest -m forensics wrote; more of them: the verdicts of other seeds",
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
