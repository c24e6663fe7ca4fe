"""Count false alarms of pure rounding noise, and the smallest fault of each kind that is found.

``python -m tools.mismatch calibrate --into docs/mismatch.md --record FILE`` writes both.
"""

import argparse
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.jsonio import write_json
from precision_lib.mismatch.judgement import CANNOT_SAY, EQUAL, PRECISION
from precision_lib.mismatch.noise import SPREAD, side_sigma
from precision_lib.mismatch.schema import Claims, Dump
from precision_lib.mismatch.verdict import judge
from tools.mismatch.faults import FAULTS, Fault
from tools.mismatch.policy import noise_dump

#: (rollout, its KV cache, trainer).
PAIRS = (
    ("fp32", None, "fp32"),
    ("fp16", None, "fp32"),
    ("fp16", None, "fp16"),
    ("bf16", None, "fp32"),
    ("bf16", None, "fp16"),
    ("bf16", None, "bf16"),
    ("bf16", "fp8", "bf16"),
    ("fp8", None, "bf16"),
    ("fp8", "fp8", "bf16"),
    ("int8", None, "bf16"),
    ("int8", None, "fp32"),
)
#: Noise beside that of all tokens: none, other tails of half the sequences, of all of them.
EQUAL_SHARES = (0.0, 0.0, 0.0, 0.5, 1.0)
SHAPES = ((32, 160), (64, 64), (16, 320), (128, 40))
FINE = (PRECISION, EQUAL, CANNOT_SAY)
BUG_RATE, POWER = 1e-3, 0.9


@dataclass(frozen=True)
class FalseAlarms:
    """Verdicts on pure rounding noise: word to number of runs, and the seeds called a bug."""

    verdicts: dict[str, int]
    alarms: tuple[int, ...]


def noise_run(seed: int) -> Dump:
    """Pure noise of the pair, the shape and the kind that ``seed`` stands for."""
    rollout, cache, trainer = PAIRS[seed % len(PAIRS)]
    random = np.random.default_rng([seed, 1])
    rows, length = SHAPES[random.integers(len(SHAPES))]
    # sigma of this model, relative to a middling one.
    factor = math.exp(random.normal(0, SPREAD))
    claims = Claims(rollout, trainer, cache, 1.0, 1.0, None, "raw")
    sigmas = (side_sigma(rollout, cache) * factor, side_sigma(trainer) * factor)
    share = EQUAL_SHARES[random.integers(len(EQUAL_SHARES))]
    return noise_dump(seed, rows, length, sigmas, claims, equal_share=share)


def false_alarms(runs: int, first: int = 0) -> FalseAlarms:
    """Judge ``runs`` dumps of pure noise."""
    counts: Counter[str] = Counter()
    alarms = []
    for seed in range(first, first + runs):
        verdict = judge(noise_run(seed)).verdict
        counts[verdict] += 1
        if verdict not in FINE:
            alarms.append(seed)
    return FalseAlarms(dict(counts), tuple(alarms))


def found_share(
    fault: Fault, size: float, fmt: str, tokens: int, seeds: int
) -> tuple[float, Counter[str]]:
    """Share of runs in which the fault is called by its name, and all verdicts."""
    length = 64
    rows = max(tokens // length, 8)
    claims = Claims(fmt, fmt, None, 1.0, 1.0, None, "raw")
    sigma = side_sigma(fmt)
    counts = Counter(
        judge(fault.plant(1000 + seed, rows, length, (sigma, sigma), claims, size)).verdict
        for seed in range(seeds)
    )
    return counts[fault.verdict] / seeds, counts


def smallest_size(fault: Fault, fmt: str, tokens: int, seeds: int) -> float | None:
    """The smallest size from which on nine of ten runs name the fault; None for no size."""
    smallest = None
    for size in reversed(fault.sizes):
        share, _ = found_share(fault, size, fmt, tokens, seeds)
        if share < POWER:
            break
        smallest = size
    return smallest


def power_table(fmts: tuple[str, ...], tokens: tuple[int, ...], seeds: int) -> list[dict[str, Any]]:
    """One row a fault: the smallest size that is found, per format and number of tokens."""
    return [
        {
            "fault": fault.name,
            "verdict": fault.verdict,
            "unit": fault.unit,
            "found_from": {
                f"{fmt}, {n}": smallest_size(fault, fmt, n, seeds) for fmt in fmts for n in tokens
            },
        }
        for fault in FAULTS
    ]


def calibrate(runs: int, seeds: int) -> dict[str, Any]:
    """Verdicts on pure noise, and the table of the smallest faults found."""
    noise = false_alarms(runs)
    return {
        "runs": runs,
        "verdicts_on_noise": noise.verdicts,
        "false_alarms": list(noise.alarms),
        "seeds": seeds,
        "power": power_table(("bf16", "fp32"), (1024, 8192), seeds),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    from tools.documents import write_between
    from tools.mismatch.noise import measure
    from tools.mismatch.tables import calibration_markdown, noise_markdown

    parser = argparse.ArgumentParser(prog="python -m tools.mismatch")
    parser.add_argument("action", choices=["calibrate", "noise"])
    parser.add_argument("--runs", type=int, default=1000, help="dumps of pure noise")
    parser.add_argument("--seeds", type=int, default=20, help="runs of a fault and size")
    parser.add_argument("--record", type=Path, help="JSON file for the figures")
    parser.add_argument("--into", type=Path, help="the document whose table is replaced")
    options = parser.parse_args(arguments)
    calibrates = options.action == "calibrate"
    result = calibrate(options.runs, options.seeds) if calibrates else measure()
    markdown = calibration_markdown(result) if calibrates else noise_markdown(result)
    if options.record is not None:
        write_json(options.record, result)
    if options.into is not None:
        write_between(options.into, f"mismatch-{options.action}", markdown)
    print(markdown)  # noqa: T201
    return 0
