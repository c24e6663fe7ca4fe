"""``precision-forensics``: each subcommand is a thin caller of one library function.

Exit codes: 0 fine, 1 precision regression, 2 inconclusive, 3 internal error, 4 usage.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precision_lib import __version__
from precision_lib.commands import (
    INCONCLUSIVE,
    INTERNAL,
    OK,
    USAGE,
    UsageError,
    add_models,
    analysis,
    check_devices,
    fail,
    frameworks,
    gate,
    print_lines,
    self_test,
    sweep,
    training,
    trajectories,
)
from precision_lib.environment import set_environment


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    set_environment()
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except UsageError as error:
        return fail(USAGE, str(error))
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        kept = getattr(options, "kept", "cells that were finished are in cells.jsonl")
        return fail(INTERNAL, f"interrupted; {kept}")
    except Exception as error:
        from precision_lib.forensics.statistics import NothingComparedError

        if isinstance(error, NothingComparedError):
            return fail(INCONCLUSIVE, str(error))
        kept = getattr(options, "kept", "cells that were finished are in cells.jsonl")
        if isinstance(error, OSError):
            return fail(INTERNAL, f"{error}; {kept}")
        if type(error).__name__ == "OutOfMemoryError":  # torch is not imported here
            return fail(INTERNAL, f"out of memory ({error}); {kept}; use a smaller --batch_size")
        traceback.print_exc()
        return fail(INTERNAL, f"internal error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="precision-forensics",
        description="Where floating-point precision matters in an RLHF pipeline.",
        epilog="exit codes: 0 fine, 1 regression, 2 inconclusive, 3 internal error, 4 usage",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_probe(commands)
    trajectories.add_freeze(commands)
    trajectories.add_replay(commands)
    training.add_ppo(commands)
    sweep.add_sweep(commands)
    analysis.add_analyze(commands)
    gate.add_gate(commands)
    gate.add_compare(commands)
    gate.add_calibrate(commands)
    self_test.add_self_test(commands)
    frameworks.add_known_failures(commands)
    frameworks.add_frameworks(commands)
    _add_benchmarks(commands)
    _add_findings(commands)
    _add_embedded(commands)
    return parser


def _add_probe(commands: Any) -> None:
    probe = commands.add_parser(
        "probe",
        help="static KL probe: every configuration's log-ratio on fixed tokens, no training",
    )
    probe.add_argument(
        "--num_prompts", type=int, default=100, help="responses per length (default: %(default)s)"
    )
    probe.add_argument(
        "--seq_lengths",
        type=int,
        nargs="+",
        default=[64, 128, 256, 512],
        help="response tokens (default: %(default)s)",
    )
    _add_common(probe, Path("results/static_kl_probe"))
    probe.set_defaults(run=_probe)


def _add_common(parser: argparse.ArgumentParser, output_dir: Path) -> None:
    parser.add_argument("--output_dir", type=Path, default=output_dir, help="default: %(default)s")
    add_models(parser, forward_only=True)
    parser.add_argument("--matrix", type=Path, help="TOML file with configurations of your own")
    parser.add_argument("--seed", type=int, default=0)


def _probe(options: argparse.Namespace) -> int:
    from precision_lib.forensics.probe import ProbeSettings, check_fits
    from precision_lib.jsonio import check_writable
    from precision_lib.matrix import all_configurations
    from precision_lib.models.loading import CheckpointError, load_checkpoint
    from precision_lib.phases.static_probe import run_probe
    from precision_lib.reporting.table import summary

    try:
        settings = ProbeSettings(
            num_prompts=options.num_prompts,
            seq_lengths=tuple(options.seq_lengths),
            seed=options.seed,
        )
        configurations = all_configurations(options.matrix)
        check_writable(options.output_dir)
        check_devices(options)
        checkpoint = load_checkpoint(options.model, options.device, options.device_map)
        check_fits(checkpoint, settings)
    except (CheckpointError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    recorder = run_probe(checkpoint, settings, configurations, options.output_dir)
    print_lines(summary(recorder.block(), details=True))
    print(f"record: {recorder.path}")  # noqa: T201
    return OK


def _add_benchmarks(commands: Any) -> None:
    benchmarks = commands.add_parser(
        "benchmarks", help="tables and targets from the results of pytest -m benchmark"
    )
    benchmarks.add_argument(
        "results", type=Path, metavar="RESULTS.json", help="what --benchmark-json wrote"
    )
    benchmarks.add_argument(
        "--into",
        type=Path,
        metavar="FILE.md",
        help="replace all text between the file's markers, so measure everything (default: print)",
    )
    benchmarks.set_defaults(run=_benchmarks)


def _benchmarks(options: argparse.Namespace) -> int:
    from precision_lib.reporting import benchmarks
    from precision_lib.reporting.markdown import MarkerError, write_between

    try:
        results = benchmarks.load_results(options.results)
        text = benchmarks.tables(results)
        if options.into is not None:
            name = f"benchmarks {benchmarks.device_of(results)}"
            write_between(options.into, name, text)
    except (benchmarks.ResultsError, MarkerError, OSError) as error:
        raise UsageError(str(error)) from None
    if options.into is None:
        print(text, end="")  # noqa: T201
    return OK


def _add_findings(commands: Any) -> None:
    findings = commands.add_parser("findings", help="what records say, as tables of a document")
    findings.add_argument(
        "records",
        type=Path,
        nargs="+",
        metavar="REPORT.json",
        help="what pytest -m forensics wrote; more of them: the verdicts of other seeds",
    )
    findings.add_argument(
        "--into", type=Path, metavar="FILE.md", help="replace what stands between its markers"
    )
    findings.add_argument(
        "--summary-into",
        type=Path,
        metavar="FILE.md",
        help="put the summary of the first record between this file's markers",
    )
    findings.set_defaults(run=_findings)


def _findings(options: argparse.Namespace) -> int:
    from precision_lib.records.record import RecordError, load_record
    from precision_lib.reporting.findings import findings
    from precision_lib.reporting.markdown import MarkerError, write_between
    from precision_lib.reporting.table import summary

    try:
        blocks = [load_record(path)["precision"] for path in options.records]
        text = findings(blocks)
        if options.into is not None:
            write_between(options.into, "findings", text)
        if options.summary_into is not None:
            lines = "\n".join(line.rstrip() for line, _ in summary(blocks[0]))
            write_between(options.summary_into, "summary", f"```\n{lines}\n```")
    except (RecordError, MarkerError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    if options.into is None:
        print(text)  # noqa: T201
    return OK


def _add_embedded(commands: Any) -> None:
    embedded = commands.add_parser("embedded", help="the language model that ships with the suite")
    actions = embedded.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = actions.add_parser("train", help="make it again from the standard library's texts")
    train.add_argument("--output_dir", type=Path, required=True)
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=_train_embedded)
    reward = actions.add_parser(
        "train-reward", help="make its reward model and value head again from the same texts"
    )
    reward.add_argument("--output_dir", type=Path, required=True)
    reward.add_argument("--seed", type=int, default=0)
    reward.set_defaults(run=_train_reward)


def _train_embedded(options: argparse.Namespace) -> int:
    from precision_lib.models.embedded.train import train_embedded

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    card = train_embedded(options.output_dir, seed=options.seed)
    figures = card["held_out"]
    print(  # noqa: T201
        f"{options.output_dir}: held-out cross-entropy {figures['cross_entropy']:.3f}, trigram "
        f"{figures['trigram_cross_entropy']:.3f}, entropy {figures['entropy']:.2f} nats/token"
    )
    return OK


def _train_reward(options: argparse.Namespace) -> int:
    from precision_lib.models.embedded.train_reward import train_reward

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    card = train_reward(options.output_dir, seed=options.seed)
    explained = card["value_head"]["held_out"]["explained_variance"]
    print(  # noqa: T201
        f"{options.output_dir}: {card['held_out']['accuracy']:.1%} of held-out pairs right, value "
        f"head explains {explained:.0%} of the variance of held-out returns"
    )
    return OK


if __name__ == "__main__":
    sys.exit(main())
