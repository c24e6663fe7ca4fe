"""``python -m tools.absorption``: what is left of the optimizer's steps, by learning rate.

H6 measures at one learning rate. This takes its steps at several, from one checkpoint and one set
of frozen trajectories, and sets a law beside each. ``--picture FILE.png`` draws the records that it
wrote to the directory ``--records``.

The law knows the checkpoint's weights and no gradient. AdamW's first step of a weight is the
learning rate, up or down. A weight whose neighbours are u away stays where it is if that is below
u/2, and moves to the nearest neighbour otherwise. A weight on a power of two has a nearer neighbour
on one side, which is left out. The second figure counts all weights alike, whatever a log-prob owes
to them.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precision_lib.environment import set_environment
from precision_lib.exit_codes import OK, USAGE
from precision_lib.forensics.budget import Budget, budget
from precision_lib.forensics.frozen import freeze_and_read
from precision_lib.forensics.h6.declaration import H6
from precision_lib.forensics.h6.study import H6Study
from precision_lib.forensics.h6.updates import H6Settings, batch_of
from precision_lib.forensics.h6.walk import LEARNING_RATES, Walker
from precision_lib.formats import get_format, ulp
from precision_lib.jsonio import load_object, write_bytes, write_json
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.models.loading import CheckpointError
from precision_lib.models.pipeline import Pipeline, load_pipeline
from precision_lib.record.codec import encode
from precision_lib.record.context import run_context
from precision_lib.reporting.plots.appearance import (
    appearance,
    legend_below,
    limit_line,
    new_figure,
    rendered,
    styled,
)
from precision_lib.trajectories.prompt_file import PromptsError, asking

SCHEMA = "precision-forensics absorption by learning rate 1"
#: Learning rates that are measured by default, of those that H6 tries the first step at.
RATES = (1e-7, 1e-6, 1e-5, 1e-4)
#: What is stored, beside a bf16 policy.
STORED = ("bf16", "fp16")
DECISION = H6.decision
PURE = get_configuration(DECISION.pure)


def steps_of_format(parameters: Iterable[Tensor], fmt: str) -> tuple[Tensor, Tensor]:
    """(u [K] ascending float64, number of weights [K] float64): distances to the next number."""
    target, of_tensors = get_format(fmt), []
    for parameter in parameters:
        stored = parameter.detach().flatten().to(target.dtype)
        of_tensors.append(torch.unique(ulp(stored, target), return_counts=True))
    sizes, places = torch.unique(torch.cat([u for u, _ in of_tensors]), return_inverse=True)
    counts = torch.zeros(len(sizes), dtype=torch.float64)
    return sizes, counts.index_add(0, places, torch.cat([n for _, n in of_tensors]).double())


def law(sizes: Tensor, counts: Tensor, rate: float) -> dict[str, float]:
    """Share of the weights that a step of ``rate`` moves, and of the steps that is left."""
    moves = torch.round(rate / sizes)
    weights = counts / counts.sum()
    return {
        "moved_frac": float((weights * (moves > 0)).sum()),
        "kept": float((weights * moves * sizes).sum() / rate),
    }


def law_of(record: dict[str, Any], fmt: str, rate: float) -> dict[str, float]:
    """:func:`law` of the weights that a record was made from."""
    sizes, counts = torch.tensor(record["ulps"][fmt], dtype=torch.float64).T
    return law(sizes, counts, rate)


def at_rate(walker: Walker, rate: float) -> dict[str, Any]:
    """H6's metrics at one learning rate, by the format of the stored weights."""
    study = H6Study(walker.at(rate))
    walked = study.walker.whole(PURE.policy)
    weights = sum(p.numel() for p in walker.original.parameters())
    figures = {}
    for fmt in STORED:
        metrics = study.paired.estimates(study.measure(_stored_in(fmt)))
        figures[fmt] = {
            "moved_frac": walked.tally.first_step[fmt][rate] / weights,
            **encode(metrics),
        }
    return {"learning_rate": rate, "stored": figures}


def _stored_in(fmt: str) -> PrecisionConfig:
    return replace(PURE, name=f"{PURE.policy}_{fmt}_master", master=fmt)


def study(pipeline: Pipeline, chosen: Sequence[float], *, quick: bool, seed: int) -> dict[str, Any]:
    """Learning rates on one pipeline, and its weights; the record, JSON-ready."""
    asked = budget(quick=quick, seed=seed)
    model = pipeline.policy.model
    laws = {fmt: steps_of_format(model.parameters(), fmt) for fmt in STORED}
    return {
        "schema": SCHEMA,
        "context": run_context("cpu", seed) | {"model": pipeline.policy.name},
        "settings": {k: v for k, v in asdict(asked.settings["H6"]).items() if k != "learning_rate"},
        "gradients": PURE.policy,
        "ulps": {
            fmt: [[float(u), int(n)] for u, n in zip(*of, strict=True)] for fmt, of in laws.items()
        },
        "rates": measured(pipeline, asked, chosen) if chosen else [],
    }


def measured(pipeline: Pipeline, asked: Budget, chosen: Sequence[float]) -> list[dict[str, Any]]:
    """H6's metrics at every learning rate, from one set of frozen trajectories."""
    settings: H6Settings = asked.settings["H6"]
    with tempfile.TemporaryDirectory() as directory:
        frozen = freeze_and_read(pipeline, asked.freeze, Path(directory))
    rates = []
    walker = Walker(pipeline.policy.model, *batch_of(frozen, settings.prompts), settings)
    for rate in chosen:
        rates.append(at_rate(walker, rate))
        print(f"learning rate {rate:.0e}: measured", file=sys.stderr, flush=True)  # noqa: T201
    return rates


def load_rates(directory: Path) -> list[dict[str, Any]]:
    """The records of ``directory``, in the order of their file names.

    Raises:
        ValueError: there is none, or a file is of something else; the message says what to do.
    """
    how = "`python -m tools.absorption --json FILE` writes one"
    records = [load_object(path, "absorption", how) for path in sorted(directory.glob("*.json"))]
    if not records or any(record.get("schema") != SCHEMA for record in records):
        raise ValueError(f"{directory} holds no or other records ({SCHEMA}); {how}")
    return records


@styled
def picture(records: Sequence[dict[str, Any]]) -> Any:
    """Moved weights and the lost change against the learning rate; a column per record."""
    figure, axes = new_figure(4.8, 2, len(records), sharex=True, sharey="row")
    looks = appearance(STORED, markers=True)
    for column, record in enumerate(records):
        moved, lost = axes[0][column], axes[1][column]
        for fmt in STORED:
            _curves(moved, lost, record, fmt, looks[fmt])
        moved.set(title=record["context"]["model"], ylim=(-0.02, 1.02))
        lost.set(xscale="log", xlabel="learning rate", ylim=(-0.02, 1.1))
        limit_line(lost, DECISION.limit)
    axes[0][0].set_ylabel("weights that a step moves")
    axes[1][0].set_ylabel("error over change")
    legend_below(figure, axes[0][0], 4)
    return figure


def _curves(moved: Any, lost: Any, record: dict[str, Any], fmt: str, look: dict[str, Any]) -> None:
    """Points as measured, lines as the law has them."""
    points = [(row["learning_rate"], row["stored"][fmt]) for row in record["rates"]]
    rates = [rate for rate, _ in points]
    fine = torch.logspace(-7, -4, 61, dtype=torch.float64).tolist()
    laws = [law_of(record, fmt, rate) for rate in fine]
    mark = {"color": look["color"], "marker": look["marker"]}
    moved.plot(rates, [m["moved_frac"] for _, m in points], linestyle="", label=fmt, **mark)
    line = {"color": look["color"], "linewidth": 1, "label": f"{fmt}, law"}
    moved.plot(fine, [one["moved_frac"] for one in laws], **line)
    damage = [m[DECISION.metric] for _, m in points]
    away = [[d["value"] - d["low"] for d in damage], [d["high"] - d["value"] for d in damage]]
    lost.errorbar(rates, [d["value"] for d in damage], yerr=away, linestyle="", capsize=3, **mark)
    lost.plot(fine, [abs(1 - one["kept"]) for one in laws], **line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the record, or draw the picture of records."""
    set_environment()
    parser = argparse.ArgumentParser(prog="python -m tools.absorption")
    add = parser.add_argument
    add("--model", default="embedded", help="hub name or directory of a causal LM")
    add("--prompts", type=Path, metavar="FILE")
    add("--rates", type=float, nargs="*", choices=LEARNING_RATES, default=RATES, help="none: law")
    add("--quick", action="store_true", help="the quick budget of H6")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE", help="the record")
    add("--picture", type=Path, metavar="FILE.png", help="of the records in --records")
    add("--records", type=Path, default=Path("docs/records/absorption"), help="%(default)s")
    options = parser.parse_args(arguments)
    try:
        if options.picture:
            write_bytes(options.picture, rendered(picture(load_rates(options.records)))["png"])
            return OK
        if options.json is None:
            parser.error("--json FILE says where the record goes")
        pipeline = load_pipeline(options.model, "embedded", None, "cpu", None)
        pipeline = asking(pipeline, options.prompts, None)
    except (CheckpointError, PromptsError, OSError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return USAGE
    write_json(options.json, study(pipeline, options.rates, quick=options.quick, seed=options.seed))
    return OK


if __name__ == "__main__":
    sys.exit(main())
