"""``weights``: did the trainer's weights arrive at the engine?

Exit codes: 0 equal, 1 different, 2 cannot say, 4 wrong usage.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from precision_lib.commands import INCONCLUSIVE, OK, REGRESSION, UsageError, print_lines


def add_weights(commands: Any) -> None:
    weights = commands.add_parser(
        "weights",
        help="did the trainer's weights arrive at the engine? names each tensor that did not",
        description="Compare two checkpoint directories, safetensors files or manifests. Without "
        "ENGINE, --write-manifest writes the manifest of the first.",
        epilog="exit codes: 0 equal, 1 different, 2 cannot say, 4 usage",
    )
    weights.add_argument("trainer", type=Path, metavar="TRAINER", help="what was trained")
    weights.add_argument(
        "engine",
        type=Path,
        metavar="ENGINE",
        nargs="*",
        help="what generates; of a tensor-parallel engine one file for each rank, or their folder",
    )
    weights.add_argument(
        "--older",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="earlier weights of the trainer, the latest first where no step is known: proves what "
        "is stale, and shows the share of changed 16-bit codes of each step",
    )
    weights.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="of all steps since the last of --older: at 0 nothing may move, else all must",
    )
    _add_contract(weights)
    weights.add_argument("--json", type=Path, metavar="FILE", help="verdict and findings")
    weights.add_argument(
        "--write-manifest", type=Path, metavar="FILE", help="write the manifest of TRAINER"
    )
    weights.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="RANKS",
        help="with --write-manifest: hash what each of so many ranks of an engine holds, too",
    )
    weights.set_defaults(run=_weights, kept="the weights are only read")


def _add_contract(weights: argparse.ArgumentParser) -> None:
    """What the two sides agreed on."""
    from precision_lib.weights.must_stay import asked_groups

    weights.add_argument(
        "--keep-fp32",
        nargs="+",
        default=[],
        choices=asked_groups(),
        metavar="GROUP",
        help="what must stay FP32 besides router bias, A_log and RoPE table: %(choices)s",
    )
    weights.add_argument(
        "--quantised-from",
        choices=("master", "bf16", "either"),
        default="either",
        help="what the engine's codes must be made of: the trainer's values, or their bf16 "
        "export (default: either, for all tensors alike)",
    )
    weights.add_argument(
        "--lora-scale", type=float, metavar="SCALE", help="default: lora_alpha / r of the adapter"
    )


def _weights(options: argparse.Namespace) -> int:
    from precision_lib.jsonio import write_json
    from precision_lib.reporting.weights import weight_lines
    from precision_lib.weights.files import SourceError
    from precision_lib.weights.findings import Contract, as_json
    from precision_lib.weights.manifests import open_source, write_manifest
    from precision_lib.weights.rank_files import open_ranks
    from precision_lib.weights.ranks import compare_engine
    from precision_lib.weights.series import add_movement, latest_first

    if not options.engine and options.write_manifest is None:
        raise UsageError("give ENGINE to compare with, or --write-manifest FILE")
    if options.tensor_parallel < 1:
        raise UsageError(f"--tensor-parallel {options.tensor_parallel}: give 1 or more ranks")
    if options.lora_scale is not None and not math.isfinite(options.lora_scale):
        raise UsageError(f"--lora-scale {options.lora_scale:g}: give a number")
    if options.learning_rate is not None and not 0 <= options.learning_rate < math.inf:
        raise UsageError(f"--learning-rate {options.learning_rate:g}: give 0 or a number above it")
    if options.learning_rate is not None and not options.older:
        raise UsageError("--learning-rate needs --older FILE: the weights before the steps")
    try:
        trainer = open_source(options.trainer)
        if options.write_manifest is not None:
            write_manifest(options.write_manifest, trainer, options.tensor_parallel)
            print_lines([(f"manifest: {options.write_manifest}", "")])
        if not options.engine:
            return OK
        contract = Contract(tuple(options.keep_fp32), options.quantised_from, options.lora_scale)
        older = latest_first([open_source(path) for path in options.older], trainer)
        outcome = compare_engine(trainer, open_ranks(options.engine), contract, older)
        if older:
            add_movement(outcome, [*older[::-1], trainer], options.learning_rate)
        if options.json is not None:
            write_json(options.json, as_json(outcome))
    except (SourceError, OSError) as error:
        raise UsageError(str(error)) from None
    print_lines(weight_lines(outcome))
    return {"equal": OK, "different": REGRESSION}.get(outcome.verdict, INCONCLUSIVE)
