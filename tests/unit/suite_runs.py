"""Runs of pytest in this process: the suite as a user runs it, and the checkout's own tests.

A process of its own would import torch and what lies on top of it again, which takes seconds.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.core
import pytest

from precision_lib.plugin import packaged

ROOT = Path(__file__).parents[2]
#: An inner run is not a worker of pytest-xdist, and warnings of a second run in one process, as of
#: modules that are already imported, are no errors: ``-W error`` of CI is for the outer run.
FROM_THE_RUN_AROUND = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")
#: What ``--hypothesis-seed`` leaves behind stands in ``global_force_seed``, which is not public.
_CORE: Any = hypothesis.core


@dataclass(frozen=True)
class Done:
    """Exit code and output of a run."""

    returncode: int
    stdout: str
    stderr: str


def run_suite(*arguments: str, cwd: Path = ROOT) -> Done:
    """``tests/forensics`` from ``cwd``, as ``precision-forensics run`` and ``pytest --target`` do.

    Modules of ``cwd`` can be imported, and are forgotten afterwards.
    """
    return _captured(lambda: packaged.run(arguments), cwd)


def run_on(directory: Path, source: str, *arguments: str) -> Done:
    """``pytest --target`` from a directory, on a core with this source; record.json is there."""
    (directory / "their_core.py").write_text(source)
    record = f"--json-report-file={directory / 'record.json'}"
    return run_suite("--target=their_core", record, *arguments, cwd=directory)


def run_checkout(*arguments: str, cwd: Path = ROOT) -> Done:
    """``pytest`` under the settings of the checkout, wherever it is called."""
    settings = ("-c", str(ROOT / "pytest.ini"), f"--rootdir={ROOT}", "-p", "no:cacheprovider")
    return _captured(lambda: int(pytest.main([*settings, *arguments])), cwd)


def _captured(run: Callable[[], int], cwd: Path) -> Done:
    out, err = StringIO(), StringIO()
    with _put_back(cwd), chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        code = run()
    return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def _put_back(cwd: Path) -> Iterator[None]:
    """The environment, ``conftest``, the path, modules of ``cwd`` and Hypothesis's state."""
    environment, path, conftest = dict(os.environ), list(sys.path), sys.modules.get("conftest")
    profile, seed = hypothesis.settings.get_current_profile_name(), _CORE.global_force_seed
    importlib.invalidate_caches()
    for name in FROM_THE_RUN_AROUND:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        if conftest is not None:
            sys.modules["conftest"] = conftest
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if cwd != ROOT and file and cwd in Path(file).parents:
                del sys.modules[name]
        hypothesis.settings.load_profile(profile)
        _CORE.global_force_seed = seed
