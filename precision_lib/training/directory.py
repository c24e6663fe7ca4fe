"""The directory of a run: what is in it, who may write there, which of its lines count.

A lock keeps a second process out. Lines behind the state are dropped on resuming, and half a line
or a temporary file that a kill left is removed.

Files of a run: ``steps.jsonl`` (a line per step), ``state.safetensors``, ``summary.json``, and
manifests of the weights (:mod:`training.manifests`).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from precision_lib.jsonio import write_text
from precision_lib.training.lines import Figures
from precision_lib.training.state import STATE, StateError
from precision_lib.training.summary import SUMMARY

STEPS, LOCK = "steps.jsonl", ".lock"
FILES = (STEPS, STATE, SUMMARY)


def check_free(directory: Path, *, resume: bool) -> None:
    """Refuse to write over a run.

    Raises:
        StateError: there is anything of one, and ``resume`` is off.
    """
    if not resume and any((directory / name).exists() for name in FILES):
        raise StateError(
            f"{directory} holds a PPO run already; continue it with --resume or give another "
            "--output_dir"
        )


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: two processes that train in one directory destroy both runs.

    The lock goes with the process, however that ends. Where the system has no such locks
    (Windows), nothing is checked.

    Raises:
        StateError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateError(
                f"another process is training in {directory}; wait for it, or give another "
                "--output_dir"
            ) from None
        yield


def clear_debris(directory: Path) -> None:
    """Remove the temporary files that a killed process left. Call it with the lock held."""
    for name in (*FILES, "weights_*"):
        for path in directory.glob(f".{name}.*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def read_lines(directory: Path) -> list[Figures]:
    """The lines of ``steps.jsonl``; one that a kill cut off is left out.

    Raises:
        StateError: a whole line that is no step's line, or steps out of order.
    """
    path = directory / STEPS
    if not path.is_file():
        return []
    lines: list[Figures] = []
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError:
            continue  # empty, or cut off by a kill
        if not isinstance(line, dict) or line.get("step") != len(lines):
            raise StateError(
                f"{path}, line {number} is not the line of step {len(lines)}: the file was "
                "altered; start again in another --output_dir"
            )
        lines.append(line)
    return lines


def lines_before(directory: Path, step: int | None) -> list[Figures]:
    """The lines of the steps before ``step``, the next one by the state; None without a state.

    Raises:
        StateError: some are not there, or there are lines and no state that says what they are of.
    """
    lines = read_lines(directory)
    if lines and step is None:
        raise StateError(
            f"{directory / STEPS} has lines and there is no state: nobody knows of which run they "
            "are; start again in another --output_dir"
        )
    step = step or 0
    if len(lines) < step:
        raise StateError(
            f"{directory / STEPS} ends at step {len(lines) - 1}, the state is at {step}: lines "
            "were removed; start again in another --output_dir"
        )
    return lines[:step]


def write_lines(directory: Path, lines: list[Figures]) -> None:
    """Make ``steps.jsonl`` these lines and nothing else."""
    if (directory / STEPS).exists():
        write_text(directory / STEPS, "".join(json.dumps(line) + "\n" for line in lines))
