"""Baselines: the reviewed metrics of one device class.

A baseline is sorted text with a metric to a line, in the shortest digits that give the same float64
back. It names device, models, matrix and budget, and how noisy the device was.
"""

import json
import math
from pathlib import Path
from typing import Any

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.jsonio import parse_json, to_plain, write_text
from precision_lib.records.training_changes import training_summary
from precision_lib.records.upgrade import upgrade_baseline

SCHEMA = 2
DIRECTORY = Path("baselines")
#: Of a record's context, what a baseline keeps.
_CONTEXT = (
    *("commit", "python", "versions", "device", "cpu", "threads", "seed", "settings", "budget"),
    *("checkpoint", "reward_model", "trajectories", "observed_formats"),
    *(h.context for h in HYPOTHESES.values() if h.context),
)

Baseline = dict[str, Any]


class BaselineError(ValueError):
    """A baseline cannot be made, read or written; the message says why and what to do."""


def baseline_path(block: dict[str, Any]) -> Path:
    """``baselines/<device-class>.json`` for the device of a record of the whole main job.

    Raises:
        BaselineError: the record does not say which device it is of, or it is of a smaller job,
            whose baseline would take the place of the whole one's.
    """
    name = device_class(block["context"])
    done = {(c["hypothesis"], c["configuration"]) for c in block["cells"]}
    whole = bool(done) and done >= {(h, c) for h in block["thresholds"] for c in block["matrix"]}
    if not whole or not block.get("conformance") or block["context"].get("budget") == "quick":
        raise BaselineError(
            "a baseline of a part of the main job (--quick, --target, -k) or of a sweep needs "
            "--baseline FILE, or it would replace that of the whole"
        )
    return DIRECTORY / f"{name}.json"


def device_class(context: dict[str, Any]) -> str:
    """The device class of a record's or a baseline's context.

    Raises:
        BaselineError: there is none: nothing was measured.
    """
    try:
        return str(context["device"]["class"])
    except KeyError:
        raise BaselineError("the record names no device: it holds no measurement") from None


def baseline_of(block: dict[str, Any]) -> Baseline:
    """The baseline that a record's ``precision`` block makes.

    Raises:
        BaselineError: the run was broken on purpose, is not complete, or compared nothing.
    """
    if block.get("planted_fault"):
        raise BaselineError(f"{block['planted_fault']} was planted: this is not a measurement")
    conformance = block.get("conformance") or {}
    training = block.get("training") or {}
    if not block["cells"] and not conformance and not training:
        raise BaselineError("the run measured nothing")
    whole = (not block["cells"] or block.get("complete"), not training or training["complete"])
    if not all(whole):
        raise BaselineError("the run is not complete: run it again, to its end")
    return summary_of(block)


def summary_of(block: dict[str, Any]) -> Baseline:
    """What a baseline keeps of a ``precision`` block, whatever that is worth."""
    cells: dict[str, dict[str, Any]] = {}
    for cell in block["cells"]:
        of_hypothesis = cells.setdefault(cell["hypothesis"], {})
        kept = {k: cell[k] for k in ("verdict", "metrics")}
        for name in ("true_kl", "batch_shift"):
            if name in cell["evidence"]:
                kept[name] = cell["evidence"][name]
        of_hypothesis[cell["configuration"]] = kept
    context = {k: block["context"][k] for k in _CONTEXT if k in block["context"]}
    return {
        "schema": SCHEMA,
        "device_class": device_class(block["context"]),
        "context": context,
        "matrix": block["matrix"],
        "noise_floors": block.get("noise_floors", {}),
        "cells": cells,
        "conformance": _core(block.get("conformance") or {}),
        "training": training_summary(block.get("training") or {}),
    }


def _core(conformance: dict[str, Any]) -> dict[str, Any]:
    """What a baseline keeps of the checks of a core: the counts and which failed."""
    if not conformance:
        return {}
    kept = ("tests", "failed", "inputs", "compared", "worst_over_limit")
    functions = {
        name: {key: counts[key] for key in kept if key in counts}
        for name, counts in conformance["functions"].items()
    }
    about = {key: conformance[key] for key in ("target", "profile", "seed") if key in conformance}
    return about | {"functions": functions}


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write it as sorted text, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, "\n".join(_lines(to_plain(baseline), 0)) + "\n")


def _lines(value: Any, depth: int) -> list[str]:
    """Strict JSON; a dictionary that holds no other takes one line."""
    if not _is_deep(value):
        return [json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)]
    indent, lines = " " * (depth + 1), ["{"]
    for key in sorted(value):
        first, *rest = _lines(value[key], depth + 1)
        lines.append(f"{indent}{json.dumps(key, ensure_ascii=False)}: {first}")
        lines += rest
        lines[-1] += ","
    lines[-1] = lines[-1].removesuffix(",")
    return [*lines, " " * depth + "}"]


def _is_deep(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, dict) and v for v in value.values())


def load_baseline(path: Path | str) -> Baseline:
    """Read a baseline and check that it is one.

    Raises:
        BaselineError: missing, truncated, not a baseline, or of a newer schema.
    """
    path = Path(path)
    try:
        baseline = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaselineError(
            f"baseline {path} does not exist; pytest with --update-baseline writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise BaselineError(f"baseline {path} cannot be read: {error}") from None
    wanted = {"schema", "device_class", "context", "matrix", "cells", "conformance"}
    if not isinstance(baseline, dict) or not wanted <= set(baseline):
        raise BaselineError(
            f"{path} is not a baseline; `pytest -m forensics --update-baseline` writes one"
        )
    if not isinstance(baseline["schema"], int) or not 1 <= baseline["schema"] <= SCHEMA:
        raise BaselineError(
            f"baseline {path} has schema {baseline['schema']!r}, this version reads 1 to "
            f"{SCHEMA}; upgrade rlhf-precision-forensics"
        )
    try:
        if baseline["schema"] < SCHEMA:
            upgrade_baseline(baseline)
        _check_figures(baseline)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BaselineError(f"baseline {path} is damaged ({error}); make it again") from None
    return baseline


def _check_figures(baseline: Baseline) -> None:
    """Every figure is a finite number with a sensible interval.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: one is not, or a part has another shape.
    """
    device_class({"device": {"class": baseline["device_class"]}})
    for hypothesis, cells in baseline["cells"].items():
        for configuration, cell in cells.items():
            for name, metric in cell["metrics"].items():
                figures = [metric[x] for x in ("low", "value", "high")]
                finite = all(isinstance(x, int | float) and math.isfinite(x) for x in figures)
                if not finite or figures[0] > figures[2] or metric["n"] < 1:
                    raise ValueError(f"{hypothesis} {configuration} {name} is {metric}")
    core = baseline["conformance"]
    if core:
        wanted = {"tests", "failed", "inputs", "compared", "worst_over_limit"}
        lacking = [name for name, counts in core["functions"].items() if not wanted <= set(counts)]
        if lacking or not {"target", "profile"} <= set(core):
            raise ValueError(f"the core's part lacks something: {lacking or sorted(core)}")
