"""Kill the main job at random moments, continue it each time, and compare the record.

``python -m tools.interrupted kill [--kills 20] [--seed 0] [ARGUMENT ...]``

It runs ``pytest -m forensics ARGUMENT ...`` once without interruption. Then it starts the job
again, kills it (SIGKILL) after a random share of the time that the first run took, continues it
with ``--resume``, kills that, and so on. A job that comes to its end, at the latest after four
kills, is compared with the first run, and the next one begins, until so many kills are done. Give a
small job: ``--quick``.

``python -m tools.interrupted compare RECORD RECORD``

It prints what differs between two records of the same job: cells, verdicts, conformance counts,
outcomes of tests. Times, and the identifier of the run, are left out. Exit code 1 if anything does.
"""

import os
import random
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest

from precision_lib.environment import set_environment
from precision_lib.jsonio import parse_json
from precision_lib.record.resume import differences

#: Characters of a value that a difference shows.
_SHOWN = 80
#: Kills of one job at most: on a machine that got slower it would not end by itself.
_OF_A_JOB = 4
NAME = "report.json"


def differing(first: Path, second: Path) -> list[str]:
    """What differs between two records, one line each.

    Raises:
        ValueError: a file is no record, or no cell and no check would be compared.
    """
    changes = differences(_comparable(first), _comparable(second))
    return [f"{name}: {before[:_SHOWN]} -> {now[:_SHOWN]}" for name, before, now in changes]


def _comparable(path: Path) -> dict[str, object]:
    report = parse_json(path.read_text(encoding="utf-8"))
    block = {name: value for name, value in report["precision"].items() if name != "run"}
    if not block["cells"] and not block.get("conformance"):
        raise ValueError(f"{path} holds no cell and no conformance check: nothing to compare")
    for part, key in (("cells", "configuration"), ("hypotheses", "hypothesis")):
        block[part] = {f"{one['hypothesis']} {one[key]}": one for one in block[part]}
    return block | {"tests": {test["nodeid"]: test["outcome"] for test in report["tests"]}}


def _start(arguments: Sequence[str]) -> int:
    """Fork a process that runs pytest with its output in a file beside the record; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        log = os.open(f"{arguments[-1].partition('=')[2]}.log", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(log, stream)
        code = int(pytest.main(["-p", "no:cacheprovider", "-m", "forensics", *arguments]))
    finally:
        os._exit(code)


def _ended(pid: int, seconds: float) -> bool:
    """Whether the process came to its end within so many seconds; if not, it is killed.

    Raises:
        RuntimeError: it was refused, or broke off: an exit code beyond those of passed and failed
            tests. A failed test is an outcome, which is compared.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                raise RuntimeError(f"pytest ended with exit code {code}")
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def interrupted_job(
    directory: Path, arguments: Sequence[str], moments: Sequence[float]
) -> list[float]:
    """Start a job, kill it and continue it until it ends; its record is in ``directory``.

    Args:
        moments: seconds after which each start is killed; after the last the job runs to its end.

    Returns:
        those of the moments that were reached.
    """
    directory.mkdir(parents=True)
    given, killed = [*arguments, f"--json-report-file={directory / NAME}"], list[float]()
    for seconds in moments:
        if _ended(_start(given), seconds):
            return killed
        killed.append(seconds)
        given = [*arguments, "--resume", f"--json-report-file={directory / NAME}"]
    _ended(_start(given), float("inf"))
    return killed


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def prove(kills: int, seed: int, arguments: Sequence[str], directory: Path) -> int:
    """Kill so many times; the exit code."""
    began = time.monotonic()
    interrupted_job(directory / "whole", arguments, ())
    whole, draw, done, jobs = time.monotonic() - began, random.Random(seed), 0, 0
    _say(f"uninterrupted: {whole:.0f} s")
    while done < kills:
        jobs += 1
        moments = [draw.uniform(0, whole) for _ in range(min(_OF_A_JOB, kills - done))]
        killed = interrupted_job(directory / str(jobs), arguments, moments)
        done += len(killed)
        different = differing(directory / "whole" / NAME, directory / str(jobs) / NAME)
        after = ", ".join(f"{seconds / whole:.0%}" for seconds in killed) or "never"
        _say(f"job {jobs}: killed after {after}; {len(different)} differences")
        if different:
            _say("\n".join(different[:20]))
            return 1
    _say(f"{done} kills in {jobs} jobs: the same record each time")
    return 0


def main() -> int:
    """Exit code: 0 the same, 1 a difference."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    kill = commands.add_parser("kill")
    kill.add_argument("--kills", type=int, default=20)
    kill.add_argument("--seed", type=int, default=0, help="of the moments")
    compare = commands.add_parser("compare")
    compare.add_argument("records", nargs=2, type=Path, metavar="RECORD")
    own, arguments = parser.parse_known_args()
    if own.command == "compare":
        different = differing(*own.records)
        _say("\n".join(different) or "the same")
        return int(bool(different))
    set_environment()
    for library in ("torch", "transformers", "hypothesis"):
        import_module(library)  # once for all runs
    with tempfile.TemporaryDirectory() as directory:
        return prove(own.kills, own.seed, arguments, Path(directory))


if __name__ == "__main__":
    sys.exit(main())
