"""What the subcommands share: exit codes, the usage error, the options that name models.

A user's mistake is a :class:`UsageError`: one line and exit code 4. Everything else that is raised
counts as an error of the program. Importing this loads neither torch nor transformers.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from precision_lib.exit_codes import INCONCLUSIVE as INCONCLUSIVE
from precision_lib.exit_codes import INTERNAL as INTERNAL
from precision_lib.exit_codes import OK as OK
from precision_lib.exit_codes import REGRESSION as REGRESSION
from precision_lib.exit_codes import USAGE as USAGE


class UsageError(Exception):
    """Something that the user gave does not fit; the message says what and what to do."""


def fail(code: int, message: str) -> int:
    """Print ``message`` to stderr and return ``code``."""
    print(f"precision-forensics: {message}", file=sys.stderr)  # noqa: T201
    return code


def print_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Print lines of a table, each in the colour of its verdict; NO_COLOR and pipes get none."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    codes = {"green": "32", "red": "31", "yellow": "33", "bold": "1"}
    for text, style in lines:
        shown = f"\033[{codes[style]}m{text}\033[0m" if colour and style else text
        print(shown)  # noqa: T201


def check_report_extra(what: str) -> None:
    """Refuse before anything is read when the packages that draw are not installed.

    Raises:
        UsageError: ``what`` needs the extra report.
    """
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{what} needs {' and '.join(missing)}, not installed here: "
            'pip install "rlhf-precision-forensics[report]"'
        )


def add_models(
    parser: argparse.ArgumentParser, *, pipeline: bool = False, forward_only: bool = False
) -> None:
    """``--model`` and ``--device``, for a ``pipeline`` reward and reference model too.

    A ``forward_only`` phase, which trains no model, takes ``--device-map`` besides.
    """
    parser.add_argument("--model", default="embedded", help="hub name or directory of a causal LM")
    if pipeline:
        parser.add_argument(
            "--reward-model", default="embedded", help="hub name or directory of a scalar reward"
        )
        parser.add_argument("--reference-model", help="of a causal LM (default: the policy itself)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    if forward_only:
        parser.add_argument(
            "--device-map",
            metavar="MAP",
            help="instead of --device: spread each model over all GPUs (auto, balanced or "
            "sequential, as in transformers; needs the extra multi-gpu)",
        )


def check_devices(options: argparse.Namespace) -> None:
    """Refuse what cannot place a model, before anything is loaded.

    Raises:
        UsageError: ``--device`` and ``--device-map`` together, an unknown map, one without
            accelerate, or a device that is not there.
    """
    from precision_lib.models.loading import CheckpointError, NoDeviceError, target_device

    device_map = getattr(options, "device_map", None)
    if device_map is not None and options.device != "cpu":
        raise UsageError(
            f"--device-map {device_map} places the models itself; leave out --device "
            f"{options.device}"
        )
    try:
        target_device(options.device, device_map)
    except NoDeviceError as error:
        asked = f"--device {options.device}" if device_map is None else f"--device-map {device_map}"
        raise UsageError(f"{asked}: {error}") from None
    except (CheckpointError, ValueError) as error:
        raise UsageError(str(error)) from None


def load_models(options: argparse.Namespace) -> Any:
    """The :class:`models.pipeline.Pipeline` that ``options`` name.

    Raises:
        UsageError: a model or the device cannot be had.
    """
    from precision_lib.models.loading import CheckpointError
    from precision_lib.models.pipeline import load_pipeline
    from precision_lib.trajectories.prompt_file import asking

    check_devices(options)
    try:
        pipeline = load_pipeline(
            options.model,
            options.reward_model,
            options.reference_model,
            options.device,
            getattr(options, "device_map", None),
        )
        chosen = (getattr(options, name, None) for name in ("prompts", "chat_template"))
        return asking(pipeline, *chosen)
    except (CheckpointError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
