"""Synthetic ``precision`` blocks of a few lines, as the second schema wrote them.

The hazard is a fixture that is greener than any run: so every metric that ``directions.py`` gates
stands in :func:`whole`, with an interval where a run has one.
"""

import copy
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from precision_lib.compare import gate, margins
from precision_lib.compare.baseline import Baseline, baseline_from, baseline_of, summary_of
from precision_lib.compare.comparison import Comparison
from precision_lib.compare.directions import DIRECTIONS, Direction
from precision_lib.compare.margins import Margin, is_beyond
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.forensics.statistics import Metric
from precision_lib.jsonio import to_plain
from precision_lib.record.codec import decode, encode
from precision_lib.record.files import record_of
from precision_lib.record.record import Record

Block = dict[str, Any]
CLUSTERS = 8
CONFIGURATIONS = ("bf16_pure", "fp32_bf16_kl")
COMPONENTS = ("policy", "reference", "reward", "value", "kl")
#: Value and half of the interval of a metric on each scale, "" for what is not gated.
_TYPICAL = {
    "ratio": (0.5, 0.05),
    "difference": (0.2, 0.02),
    "magnitude": (-0.3, 0.03),
    "step": (2.0**-7, 0.0),
    "exact": (0.0, 0.0),
    "": (0.1, 0.01),
}
DEVICE = {"class": "cpu", "name": "a processor"}
MODEL = {"name": "embedded", "sha256": "0" * 64}
SETTINGS = {"num_batches": 2, "batch_size": 64, "max_new_tokens": 32, "samples_per_prompt": 8}


def metric(
    value: float, half: float = 0.0, *, n: int = 1000, clusters: int | None = CLUSTERS
) -> dict[str, Any]:
    """A metric with the interval value - half to value + half."""
    made = {"value": value, "low": value - half, "high": value + half, "n": n, "unit": "units"}
    return made if clusters is None else made | {"clusters": clusters}


def cell(
    hypothesis: str,
    configuration: str,
    *,
    true_kl: float | None = None,
    observed: dict[str, str | None] | None = None,
    verdict: str = "impaired",
    **metrics: dict[str, Any],
) -> dict[str, Any]:
    """A finished cell; the metrics are the hypothesis' typical ones where none are given."""
    evidence: dict[str, Any] = {"observed_formats": observed or {}}
    return {
        "hypothesis": hypothesis,
        "configuration": configuration,
        "verdict": verdict,
        "metrics": metrics or typical(hypothesis),
        "evidence": evidence if true_kl is None else evidence | {"true_kl": true_kl},
    }


def typical(hypothesis: str) -> dict[str, dict[str, Any]]:
    """All metrics of a hypothesis that has a bad and a good side to be moved to."""
    return {name: metric(*_TYPICAL[how.scale]) for name, how in DIRECTIONS[hypothesis].items()}


def counts(
    *failed: str, tests: int = 5, compared: int = 100, worst: float | str = 0.5
) -> dict[str, Any]:
    """What the conformance checks of one function found."""
    return {
        "tests": tests,
        "failed": list(failed),
        "inputs": 10,
        "compared": compared,
        "worst_over_limit": worst,
    }


def core(target: str = "precision_lib.ppo", **functions: dict[str, Any]) -> dict[str, Any]:
    """The conformance part of a block."""
    return {"target": target, "not_offered": [], "profile": "ci", "seed": 0, "functions": functions}


def block(
    *cells: dict[str, Any],
    context: dict[str, Any] | None = None,
    conformance: dict[str, Any] | None = None,
    expected: Iterable[tuple[str, str]] | None = None,
    **changes: Any,
) -> Block:
    """A block of these cells, complete unless ``expected`` names more of them."""
    done = [(c["hypothesis"], c["configuration"]) for c in cells]
    wanted = done if expected is None else list(expected)
    observed: dict[str, dict[str, str]] = {}
    for c in cells:
        seen = c["evidence"]["observed_formats"].items()
        observed.setdefault(c["configuration"], {}).update({k: v for k, v in seen if v})
    here = {
        "commit": {"sha": "abcdef0123456789", "dirty": False},
        "device": DEVICE,
        "seed": 0,
        "budget": "whole",
        "checkpoint": MODEL,
        "reward_model": MODEL,
        "trajectories": {"settings": SETTINGS},
        "observed_formats": observed,
    }
    made = {
        "schema": 2,
        "run": "a-run",
        "complete": bool(wanted) and set(done) >= set(wanted),
        "planted_fault": None,
        "context": here | (context or {}),
        "matrix": {name: dict.fromkeys(COMPONENTS, "bf16") for _, name in done},
        "thresholds": {h: asdict(d) for h, d in DECISIONS.items()},
        "noise_floors": {},
        "expected": [list(key) for key in wanted],
        "cells": list(cells),
        "hypotheses": [],
        "conformance": conformance or {},
        "training": {},
        "regressions": [],
        "gate": {},
    }
    return copy.deepcopy(made | changes)


def whole(**changes: Any) -> Block:
    """Four hypotheses, two configurations, every metric, and a core of two functions."""
    cells = [cell(h, c) for h in DIRECTIONS for c in CONFIGURATIONS]
    core_of = core(whiten=counts(), gae=counts(worst=0.9))
    return block(*cells, **{"conformance": core_of} | changes)


def record(of: Block) -> Record:
    """The record that a block holds."""
    return record_of(parsed(of))


def baseline(of: Block) -> Baseline:
    """The baseline that the text of a baseline holds, see :func:`known`."""
    return baseline_from(parsed(of), 2)


def judge(of: Block, before: Block | Baseline) -> Comparison:
    """What the gate says of a block, against the text of a baseline or one that was read."""
    return gate.judge(record(of), before if isinstance(before, Baseline) else baseline(before))


def known(of: Block) -> Block:
    """The baseline that a block makes, as the text of its file."""
    return parsed(encode(baseline_of(record(of))))


def known_whatever(of: Block) -> Block:
    """The same of a block of which none may be made."""
    return parsed(encode(summary_of(record(of))))


def read(path: Path) -> dict[str, Any]:
    """A JSON file as it stands."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def parsed(value: dict[str, Any]) -> dict[str, Any]:
    """A block or a baseline as it comes back from its file."""
    back: dict[str, Any] = json.loads(json.dumps(to_plain(value), allow_nan=False))
    return back


def moved(
    of: Block, hypothesis: str, name: str, to: dict[str, Any], configuration: str = "bf16_pure"
) -> Block:
    """A copy of a block in which one metric has another value."""
    changed = copy.deepcopy(of)
    for c in changed["cells"]:
        if (c["hypothesis"], c["configuration"]) == (hypothesis, configuration):
            c["metrics"][name] = to
    return changed


def typed(figures: dict[str, Any]) -> Metric:
    """The metric of a dictionary."""
    return decode(Metric, figures)


def margin(before: dict[str, Any], after: dict[str, Any], *about: Any, **more: Any) -> Margin:
    """:func:`margins.margin` of two dictionaries."""
    return margins.margin(typed(before), typed(after), *about, **more)


def outcome(before: dict[str, Any], after: dict[str, Any], how: Direction, many: int = 1) -> str:
    """What becomes of a pair of metrics: ``regression``, ``improvement`` or ``same``."""
    m = margin(before, after, how, many)
    if is_beyond(m.after, m.limit, how.worse):
        return "regression"
    return "improvement" if is_beyond(m.after, m.improved, -how.worse) else "same"
