"""``run`` and ``conformance``: the suite's tests from any directory, with pytest's exit codes.

Everything behind the command goes to pytest as it stands, so that a run from here and one from the
checkout are the same run.
"""

import argparse
from typing import Any

from precision_lib.plugin import options

_MORE = (
    "every option of pytest too, such as -k h1, -v, -x, --junit-xml=FILE, "
    "--json-report-file=FILE (the record)"
)


def add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="the main job: a verdict per hypothesis and configuration",
        epilog=_MORE,
        allow_abbrev=False,
    )
    options.add_for_every_run(run.add_argument)
    options.add_for_the_main_job(run.add_argument)
    run.set_defaults(run=_run, for_pytest=True)


def add_conformance(commands: Any) -> None:
    conformance = commands.add_parser(
        "conformance",
        help="which functions of a PPO core lose precision, with the smallest failing input",
        epilog=_MORE,
        allow_abbrev=False,
    )
    conformance.add_argument(
        "module",
        metavar="MODULE[:ATTRIBUTE]",
        help="installed or in this directory, or trl, verl, openrlhf, torchtune, liger",
    )
    options.add_for_a_core(conformance.add_argument)
    options.add_for_every_run(conformance.add_argument)
    conformance.set_defaults(run=_conformance, for_pytest=True)


def _run(given: argparse.Namespace) -> int:
    from precision_lib.plugin.packaged import run

    return run(given.arguments)


def _conformance(given: argparse.Namespace) -> int:
    from precision_lib.plugin.packaged import run

    others = list(given.arguments)
    others.remove(given.module)
    return run([f"--target={given.module}", *others])
