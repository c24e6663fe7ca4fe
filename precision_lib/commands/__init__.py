"""What the subcommands share: exit codes, the usage error, the options that name models.

The hazard is a traceback where a sentence was due. A user's mistake is a :class:`UsageError`, one
line and exit code 4; everything else that is raised counts as an error of the program.

Importing this loads neither torch nor transformers, so that ``--help`` is quick.
"""

import argparse
import sys
from typing import Any

OK, REGRESSION, INCONCLUSIVE, INTERNAL, USAGE = range(5)


class UsageError(Exception):
    """Something that the user gave does not fit; the message says what and what to do."""


def fail(code: int, message: str) -> int:
    """Print ``message`` to stderr and return ``code``."""
    print(f"precision-forensics: {message}", file=sys.stderr)  # noqa: T201
    return code


def add_models(parser: argparse.ArgumentParser, *, pipeline: bool = False) -> None:
    """``--model`` and ``--device``, and for a ``pipeline`` reward and reference model too."""
    parser.add_argument("--model", default="embedded", help="hub name or directory of a causal LM")
    if pipeline:
        parser.add_argument(
            "--reward-model", default="embedded", help="hub name or directory of a scalar reward"
        )
        parser.add_argument("--reference-model", help="of a causal LM (default: the policy itself)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def load_models(options: argparse.Namespace) -> Any:
    """The :class:`models.pipeline.Pipeline` that ``options`` name.

    Raises:
        UsageError: a model or the device cannot be had.
    """
    from precision_lib.models.loading import CheckpointError, NoDeviceError
    from precision_lib.models.pipeline import load_pipeline

    try:
        return load_pipeline(
            options.model, options.reward_model, options.reference_model, options.device
        )
    except NoDeviceError as error:
        raise UsageError(f"--device {options.device}: {error}") from None
    except (CheckpointError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
