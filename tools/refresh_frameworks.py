"""``python -m tools.refresh_frameworks``: lists, records and tables of the frameworks, made again.

For each framework that is named, one after the other: its conformance run, whose failures go into
its list of known failures and whose record goes to ``docs/records/frameworks``. Then the tables of
``docs/frameworks.md``. A new failure that no cause covers stands in the list as unexplained; the
command names the list and ends with exit code 1 until somebody has explained it.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from precision_lib.exit_codes import OK, REGRESSION
from precision_lib.targets import adapters
from precision_lib.targets.known_failures import read_known_failures
from tools import frameworks

LISTS = Path("precision_lib/targets/known_failures")
RECORDS = Path("docs/records/frameworks")
#: Seconds for a check, so that a busy machine does not make a slow check a failure.
TIMEOUT = 600


def refresh(name: str) -> int:
    """Run one framework's checks and rewrite its list and record; how many are unexplained."""
    path = LISTS / f"{name}.toml"
    listed = f"--known-failures={path if path.exists() else 'none'}"
    command = [sys.executable, "-m", "pytest", f"--target={name}", listed]
    command += [f"--check-timeout={TIMEOUT}", f"--update-known-failures={path}"]
    command += ["--json-report-summary", f"--json-report-file={RECORDS / name}.json"]
    subprocess.run(command, check=False)
    unexplained = [k.test for k in read_known_failures(path).known if k.kind == "unexplained"]
    for test in unexplained:
        print(f"{path}: {test} is unexplained")  # noqa: T201
    return len(unexplained)


def main(arguments: Sequence[str] | None = None) -> int:
    """Refresh the frameworks that are named, all where none is, and the tables."""
    parser = argparse.ArgumentParser(prog="python -m tools.refresh_frameworks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(adapters.NAMES))
    names = parser.parse_args(arguments).names or adapters.NAMES
    unexplained = sum([refresh(name) for name in names])
    records = [str(RECORDS / f"{name}.json") for name in adapters.NAMES]
    code = frameworks.main([*records, "--into", "docs/frameworks.md"])
    return code or (REGRESSION if unexplained else OK)


if __name__ == "__main__":
    sys.exit(main())
