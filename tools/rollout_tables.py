"""``python -m tools.rollout_tables``: what of a real engine's mismatch is the engine.

Dumps of ``examples/rollout_vllm.py`` are scored here in FP32, and twice in the engine's format:
with FP32 sums that are rounded once, and with torch's own kernels. The rows go into a record, and
the record goes into a document.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from precision_lib.jsonio import load_object, write_json
from precision_lib.mismatch.noise import sigma_of
from precision_lib.mismatch.report import ScoredInBoth
from precision_lib.mismatch.rollout import Rollout, read_rollout
from precision_lib.mismatch.schema import Array, Dump
from precision_lib.models.loading import Checkpoint, load_checkpoint, set_parameters, working_copy
from precision_lib.phases.rollout_check import formats_to_score, run_rollout_check
from precision_lib.reporting.markdown import table
from precision_lib.runtime import deterministic
from precision_lib.scoring.sampled import figures_of_tokens
from precision_lib.scoring.scorer import GOLDEN
from tools.documents import write_between

SCHEMA = "precision-forensics rollouts 1"
OURS, NATIVE = "FP32 sums", "torch's kernels"


def measure(checkpoint: Checkpoint, name: str, path: Path, engine: str) -> dict[str, Any]:
    """One row: sigma of the engine and of both trainers against FP32, and of the engine to each.

    Args:
        name: of the model. engine: how the dump was made, in a few words.
    """
    rollout = read_rollout(path)
    checked = run_rollout_check(checkpoint, rollout)
    exact, scored = checked.judgement.dump, checked.report.scored or {}
    row: dict[str, Any] = {
        "model": name,
        "engine": engine,
        "tokens": len(exact.row),
        "verdict": checked.report.verdict,
        "cause": checked.report.cause,
        "engine_sigma": scored[GOLDEN].sigma,
        "trainers": {},
    }
    for fmt in formats_to_score(rollout.claims)[1:]:
        model = working_copy(checkpoint.model)
        set_parameters(model, checkpoint.model, fmt)
        both = scored[fmt]
        assert isinstance(both, ScoredInBoth)
        row["trainers"][f"{fmt}, {OURS}"] = {
            "trainer_sigma": both.trainer_sigma,
            "pair_sigma": both.sigma,
            "correlation": both.correlation,
        }
        row["trainers"][f"{fmt}, {NATIVE}"] = _halves(exact, _scored(model, rollout))
        row["weights_sigma"] = _of_weights(checkpoint, model, rollout, exact)
    return row


def _of_weights(checkpoint: Checkpoint, rounded: Any, rollout: Rollout, exact: Dump) -> float:
    """sigma of the rounded weights with everything else in FP32; 0 where none is rounded."""
    set_parameters(rounded, rounded, GOLDEN)
    pairs = zip(rounded.parameters(), checkpoint.model.parameters(), strict=True)
    if all(torch.equal(one, other) for one, other in pairs):
        return 0.0
    return sigma_of(_scored(rounded, rollout) - exact.trainer, exact.rollout)


def _scored(model: Any, rollout: Rollout) -> Array:
    """[M] log-probs of the dump's real tokens, with torch's own products."""
    sequences = [torch.from_numpy(tokens) for tokens in rollout.sequences.values()]
    processed = rollout.claims.logprobs == "processed"
    temperature = (rollout.claims.temperature or 1.0) if processed else 1.0
    with deterministic(native_products=True):
        figures = figures_of_tokens(model, sequences, temperature)
    columns = {
        number: f.logprobs.double().numpy()
        for number, f in zip(rollout.sequences, figures, strict=True)
    }
    return rollout.dump({"trainer_logprobs": columns}, GOLDEN).trainer


def _halves(exact: Dump, trainer: Array) -> dict[str, float]:
    errors = exact.rollout - exact.trainer, trainer - exact.trainer
    return {
        "trainer_sigma": sigma_of(errors[1], exact.rollout),
        "pair_sigma": sigma_of(errors[1] - errors[0], exact.rollout),
        "correlation": float(np.corrcoef(*errors)[0, 1]),
    }


def rollout_markdown(record: dict[str, Any]) -> str:
    """One row an engine and trainer: the halves, what independent halves make, and the pair.

    Rounded weights are shared: they alone correlate the errors by their variance over both.
    """
    rows = []
    for row in record["rows"]:
        head = (row["model"], row["engine"], f"`{row['verdict']}`", f"{row['engine_sigma']:.2g}")
        if not row["trainers"]:
            rows.append((*head, "", "", "", "", "", ""))
        for trainer, part in row["trainers"].items():
            own, other = row["engine_sigma"], part["trainer_sigma"]
            shared = row["weights_sigma"] ** 2 / (own * other)
            sizes = [f"{number:.2g}" for number in (other, math.hypot(own, other))]
            pair = f"{part['pair_sigma']:.2g}"
            rows.append(
                (*head, trainer, *sizes, pair, f"{shared:.2f}", f"{part['correlation']:.2f}")
            )
    titles = (
        "model", "engine", "verdict", "engine's sigma", "trainer", "trainer's sigma",
        "pair if independent", "pair", "correlation from the weights", "correlation",
    )  # fmt: skip
    return table(titles, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure dumps into the record, write the table of the record; 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.rollout_tables", description=__doc__)
    parser.add_argument("dumps", nargs="*", metavar="ENGINE=DUMP", help="words for it, and file")
    parser.add_argument("--model", default="embedded", help="directory of the checkpoint")
    parser.add_argument("--name", default="embedded", help="of the model, in the table")
    parser.add_argument("--record", type=Path, default=Path("docs/records/rollouts/vllm.json"))
    parser.add_argument("--into", type=Path, help="the document whose table is replaced")
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"schema": SCHEMA, "rows": []}
    if options.record.exists():
        record = load_object(options.record, "record of rollouts", "python -m tools.rollout_tables")
    checkpoint = load_checkpoint(options.model) if options.dumps else None
    for text in options.dumps:
        engine, _, path = text.rpartition("=")
        assert checkpoint is not None
        row = measure(checkpoint, options.name, Path(path), engine)
        same = (row["model"], row["engine"])
        others = [r for r in record["rows"] if (r["model"], r["engine"]) != same]
        record = {**record, "rows": [*others, row]}
        write_json(options.record, record)
    if options.into is not None:
        write_between(options.into, "rollout-vllm", rollout_markdown(record))
    print(rollout_markdown(record))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
