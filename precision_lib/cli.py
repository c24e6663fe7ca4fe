"""``precision-forensics``: each subcommand is a thin caller of one library function.

Exit codes: 0 fine, 1 precision regression, 2 inconclusive, 3 internal error, 4 usage.
"""

import argparse
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
    attribute,
    check_devices,
    fail,
    gate,
    mismatch,
    print_lines,
    recommend,
    rollout_check,
    self_test,
    suite,
    sweep,
    training,
    trajectories,
    weights,
)
from precision_lib.environment import set_environment


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


#: A heading of ``--help`` stands above the first command of its group.
HEADINGS = {
    "run": "measure and test:",
    "probe": "one phase of it:",
    "mismatch": "trainer and engine:",
    "analyze": "read what was measured:",
}


class _Grouped(argparse.HelpFormatter):
    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        return f"\n  {HEADINGS[action.dest]}\n{text}" if action.dest in HEADINGS else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    set_environment()
    options = _parsed(sys.argv[1:] if arguments is None else list(arguments))
    try:
        return int(options.run(options))
    except UsageError as error:
        return fail(USAGE, str(error))
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        saved = getattr(options, "kept", "cells that were finished are in cells.jsonl")
        return fail(INTERNAL, f"interrupted; {saved}")
    except Exception as error:
        from precision_lib.forensics.statistics import NothingComparedError

        if isinstance(error, NothingComparedError):
            return fail(INCONCLUSIVE, str(error))
        saved = getattr(options, "kept", "cells that were finished are in cells.jsonl")
        if isinstance(error, OSError):
            return fail(INTERNAL, f"{error}; {saved}")
        if type(error).__name__ == "OutOfMemoryError":  # torch is not imported here
            return fail(INTERNAL, f"out of memory ({error}); {saved}; use a smaller --batch_size")
        traceback.print_exc()
        return fail(INTERNAL, f"internal error: {error}")


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """The options; ``run`` and ``conformance`` leave to pytest what is not theirs."""
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    if others and not getattr(options, "for_pytest", False):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    options.arguments = arguments[1:]  # behind the command
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="precision-forensics",
        formatter_class=_Grouped,
        description="Where floating-point precision matters in an RLHF pipeline.",
        epilog="exit codes: 0 fine, 1 regression, 2 inconclusive, 3 internal error, 4 usage",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    suite.add_run(commands)
    suite.add_conformance(commands)
    sweep.add_sweep(commands)
    _add_probe(commands)
    attribute.add_attribute(commands)
    recommend.add_recommend(commands)
    trajectories.add_freeze(commands)
    trajectories.add_replay(commands)
    training.add_ppo(commands)
    mismatch.add_mismatch(commands)
    rollout_check.add_rollout_check(commands)
    weights.add_weights(commands)
    analysis.add_analyze(commands)
    gate.add_gate(commands)
    gate.add_calibrate(commands)
    self_test.add_self_test(commands)
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
    parser.add_argument("--matrix", type=Path, help="TOML file of configurations, or `recipes`")
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
    print_lines(summary(recorder.record(), details=True))
    print(f"record: {recorder.path}")  # noqa: T201
    return OK


if __name__ == "__main__":
    sys.exit(main())
