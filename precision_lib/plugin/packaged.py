"""Run the suite's own tests from any directory, as the wheel or the checkout has them.

The hazard. A test run obeys the settings of the directory that it starts in: another project's
warnings filter, marker expression or random order would change a verdict. So the suite runs with
its own ini file and no plug-in but those that it needs; ``PYTEST_ADDOPTS`` and ``PYTEST_PLUGINS``
are left out.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from precision_lib.environment import VARIABLES, set_environment

_PACKAGE = Path(__file__).resolve().parents[1]
#: The folder of ``tests/forensics``: the wheel packs them below ``precision_lib/suite``.
HOME = _PACKAGE / "suite" if (_PACKAGE / "suite" / "tests").is_dir() else _PACKAGE.parent
FORENSICS = HOME / "tests" / "forensics"
SWEEP = HOME / "tests" / "sweep"
#: With --target these tests run and no others.
CONFORMANCE = FORENSICS / "test_conformance.py"
#: With --baseline these tests run too, behind all others.
REGRESSIONS = FORENSICS / "test_regressions.py"
_SETTINGS = Path(__file__).with_name("suite.ini")


def run(arguments: Sequence[str]) -> int:
    """Run ``tests/forensics`` and return pytest's exit code.

    Args:
        arguments: of pytest; a path or a test id begins at the suite's root, as in
            ``tests/forensics/test_conformance.py::test_property_holds[whiten-constant-bf16]``.
    """
    own = ["-c", str(_SETTINGS), f"--rootdir={HOME}", f"--confcutdir={HOME / 'tests'}"]
    with _undisturbed():
        return int(pytest.main([*arguments, *own], plugins=[_SuitePaths()]))


class _SuitePaths:
    """Lets the paths of the command line begin at the suite; without one, all of its tests run."""

    def pytest_load_initial_conftests(self, early_config: pytest.Config, args: list[str]) -> None:
        namespace = early_config.known_args_namespace
        named = list(namespace.file_or_dir)
        for name in named:
            if not _in_suite(name).exists():
                raise pytest.UsageError(
                    f"{name} is no test file of the suite: leave it out, or name one such as "
                    f"{CONFORMANCE.relative_to(HOME)}"
                )
        args[:] = [str(HOME / word) if word in named else word for word in args]
        if not named:
            args.append(str(FORENSICS))
        namespace.file_or_dir = [str(HOME / name) for name in named] or [str(FORENSICS)]


def _in_suite(name: str) -> Path:
    """The file of a path or test id."""
    return HOME / name.split("::")[0]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """One thread, the working directory on ``sys.path``, no settings of pytest's environment.

    Modules of the working directory can be named as a target, as with ``python -m pytest``.
    """
    set_environment()
    names = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")
    variables = {name: os.environ.pop(name) for name in names if name in os.environ}
    path = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        with _one_thread():
            yield
    finally:
        os.environ.update(variables)
        sys.path[:] = path


@contextmanager
def _one_thread() -> Iterator[None]:
    """Where a project's ``conftest.py`` has imported torch, its threads can only be set there."""
    torch = sys.modules.get("torch")
    if torch is None or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(int(VARIABLES["OMP_NUM_THREADS"]))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
