"""What only the checkout needs: tiers by folder, and a guard over the numerical state.

The options, the record and the summary are the plug-in's, ``precision_lib/plugin/suite.py``.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "tests"
#: Tiers that run only when a marker expression or a path asks for them.
ON_REQUEST = ("selftest", "sweep", "benchmark")
TIERS = {
    "unit": "unit",
    "selftest": "selftest",
    "forensics": "forensics",
    "sweep": "sweep",
    "benchmarks": "benchmark",
}
#: Folders of tests that may run at the same time.
ON_WORKERS = ("unit", "selftest")
#: Files of ten seconds and more: with ``-n`` they come first, so that no worker ends alone on one.
SLOW = (
    "sweep/test_ray_executor.py",
    "forensics/test_row_dependent_products.py",
    "targets/test_targets.py",
    "phases/test_main_job.py",
    "commands/test_sweep_command.py",
    "commands/test_command_line.py",
    "plugin/test_gating_in_pytest.py",
    "plugin/test_plugin.py",
    "conformance/test_strategies.py",
    "reporting/test_plots_readable.py",
    "reporting/test_report_in_a_browser.py",
)


def pytest_configure(config: pytest.Config) -> None:
    _let_children_find_the_package()
    if getattr(config.option, "numprocesses", None):
        _prepare_for_workers(config)


def _prepare_for_workers(config: pytest.Config) -> None:
    """Allow ``-n`` for folders of independent tests; give each worker whole files."""
    folders = [TESTS / name for name in ON_WORKERS]
    if not all(any(_inside(path, folder) for folder in folders) for path in _paths(config)):
        raise pytest.UsageError(
            "-n is for the unit tests: give tests/unit, or a part of it. The cells of the main job "
            "and of the sweep share one model's forwards, and timings need the machine alone"
        )
    if config.option.dist == "load":
        config.option.dist = "loadfile"  # a file's tests share fixtures that take seconds
        config.option.loadscopereorder = False  # in the order of the workers, see SLOW
    config.option.benchmark_disable = True  # it would warn that workers cannot measure times


def _let_children_find_the_package() -> None:
    """``python -m precision_lib.cli`` runs in any directory, also where nothing is installed."""
    paths = [str(TESTS.parent), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m TIER`` without a path imports no test of another tier, which it would leave out."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return None
    tier = TIERS.get(collection_path.name) if collection_path.parent == TESTS else None
    asked = config.getoption("markexpr")
    return True if asked in TIERS.values() and tier not in (None, asked) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its tier; leave out the tiers that nobody asked for."""
    selected: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        tier = (
            TIERS.get(item.path.relative_to(TESTS).parts[0]) if TESTS in item.path.parents else None
        )
        if tier is not None:
            item.add_marker(tier)
        unasked = tier in ON_REQUEST and not _asked_for(config, item, tier)
        (dropped if unasked else selected).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = selected
    if hasattr(config, "workerinput"):
        items.sort(key=_slow_first)


def _slow_first(item: pytest.Item) -> int:
    """Place of the item's file in :data:`SLOW`, or behind all of them."""
    name = "/".join(item.path.parts[-2:])
    return SLOW.index(name) if name in SLOW else len(SLOW)


def _asked_for(config: pytest.Config, item: pytest.Item, tier: str) -> bool:
    """True when the marker expression names the tier, or a path argument its folder or a test."""
    if tier in re.findall(r"\w+", config.getoption("markexpr")):
        return True
    folder = TESTS / item.path.relative_to(TESTS).parts[0]
    return any(_inside(path, folder) for path in _paths(config))


def _paths(config: pytest.Config) -> list[Path]:
    """The path arguments of the run, or where pytest looks without one."""
    words = (config.invocation_params.dir / word.split("::")[0] for word in config.args)
    return [path.resolve() for path in words]


def _inside(path: Path, folder: Path) -> bool:
    """True for the folder itself, too."""
    return path == folder or folder in path.parents


@pytest.fixture(autouse=True)
def numerical_state_is_left_as_found() -> Iterator[None]:
    """Fail a test that leaves a global numerical switch or a random generator changed."""
    if "torch" not in sys.modules:
        yield
        return
    from precision_lib.runtime import numerical_state

    before, modules = numerical_state(), set(sys.modules)
    yield
    after = numerical_state()
    if "transformers" in sys.modules and "transformers" not in modules:
        before.pop("generators")  # importing transformers 5.17 draws from random
    changed = {k: (before[k], after[k]) for k in before if before[k] != after[k]}
    assert not changed, f"the test left numerical state behind (before, after): {changed}"
