"""``rollout-check``: is the rollout engine's side of a dump what this model gives?

Exit codes: 0 equal or precision within the limits, 1 a bug or precision beyond them, 2 cannot say,
4 wrong usage or a file that cannot be read.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from precision_lib.commands import UsageError, check_devices, print_lines
from precision_lib.commands.mismatch import (
    add_outputs,
    check_options,
    claims_of,
    compared_weights,
    write_outputs,
)


def add_rollout_check(commands: Any) -> None:
    check = commands.add_parser(
        "rollout-check",
        help="the same from the engine's side alone: the trainer's is scored here, with the model",
    )
    check.add_argument(
        "dump",
        type=Path,
        metavar="DUMP",
        help="tokens, prompts and log-probs of the engine (docs/mismatch.md)",
    )
    check.add_argument(
        "--model", required=True, metavar="DIR", help="the checkpoint that was sampled from"
    )
    check.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    check.add_argument(
        "--device-map", metavar="MAP", help="instead of --device: spread the model over all GPUs"
    )
    add_outputs(check)
    check.set_defaults(run=_rollout_check, kept="the dump is as it was")


def _rollout_check(options: argparse.Namespace) -> int:
    from precision_lib.mismatch.report import exit_code
    from precision_lib.mismatch.rollout import read_rollout
    from precision_lib.mismatch.schema import DumpError
    from precision_lib.models.loading import CheckpointError, load_checkpoint
    from precision_lib.phases.rollout_check import run_rollout_check
    from precision_lib.reporting.bar import every
    from precision_lib.reporting.mismatch import mismatch_lines
    from precision_lib.weights.files import SourceError

    try:
        check_options(options)
        rollout = read_rollout(options.dump, claims_of(options.claim))
        weights = compared_weights(options)
        check_devices(options)
        checkpoint = load_checkpoint(options.model, options.device, options.device_map)
        lines = _Lines()
        with every(lines.write):
            checked = run_rollout_check(checkpoint, rollout, options.limit, lines.show, weights)
        write_outputs(options, checked.report, checked.judgement.dump)
    except (CheckpointError, DumpError, SourceError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    print_lines(mismatch_lines(checked.report))
    return exit_code(checked.judgement)


class _Lines:
    """A line of progress when a format begins, and whenever it is asked for."""

    def __init__(self) -> None:
        self._state, self._began = ("loading", 0, 0), time.monotonic()

    def show(self, fmt: str, done: int, total: int) -> None:
        """So many of all tokens went through the model in a format."""
        self._state = (fmt, done, total)
        if done == 0:
            self._began = time.monotonic()
            self.write()

    def write(self) -> None:
        fmt, done, total = self._state
        left = (time.monotonic() - self._began) * (total - done) / done if done else 0.0
        more = f", about {left:.0f} s left" if done else ""
        print(  # noqa: T201
            f"rollout-check: {fmt}, {done} of {total} tokens{more}", file=sys.stderr, flush=True
        )
