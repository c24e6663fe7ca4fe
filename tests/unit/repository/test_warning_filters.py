"""Warnings of our modules are errors, those of other packages are not.

Each case is a small test of its own, run by pytest in this process with the filters of pytest.ini.
"""

import configparser
import warnings
from pathlib import Path

import pytest

pytest_plugins = "pytester"
ROOT = Path(__file__).parents[3]
INNER = '''
import threading
import warnings

import pytest

OURS = ["precision_lib", "precision_lib.runtime", "tests.unit.small_runs", "test_runtime",
        "conftest", "examples.my_rlhf.trainer"]
THEIRS = ["accelerate.utils.modeling", "precision_library", "torch.testing._comparison",
          "contests", "numpy.core", "__main__"]
INTERNAL = "deprecated (Triggered internally at /pytorch/c10/core/Device.cpp:23.)"


def warned(module, message="old", category=DeprecationWarning):
    warnings.warn_explicit(message, category, "a.py", 1, module=module)


def lost(path):
    """A function of a file at ``path`` that raises, and a class whose destructor does."""
    names = {}
    code = "def raises(*_): raise KeyError\\nclass Lost: __del__ = raises\\n"
    exec(compile(code, path, "exec"), names)
    return names["raises"], names["Lost"]


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, UserWarning])
@pytest.mark.parametrize("module", OURS + THEIRS)
def test_warning(module, category):
    if module in OURS:
        with pytest.raises(category):
            warned(module, "old", category)
    else:
        warned(module, "old", category)


def test_our_own_by_stacklevel():
    def call():
        warnings.warn("old", stacklevel=2)
    with pytest.raises(UserWarning):
        call()


def test_of_torch_itself():
    warned("precision_lib.runtime", INTERNAL, UserWarning)


@pytest.mark.parametrize("path", PATHS)
def test_destructor(path):
    lost(path)[1]()


@pytest.mark.parametrize("path", PATHS)
def test_thread(path):
    thread = threading.Thread(target=lost(path)[0])
    thread.start()
    thread.join()
'''
OUR_FILES = ["/home/me/precision_lib/runtime.py", "/home/me/tests/unit/test_a.py"]
THEIR_FILES = ["/usr/lib/site-packages/ray/worker.py"]


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with the filters of pytest.ini and nothing else of it."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    parser = configparser.RawConfigParser(comment_prefixes=("#",))
    parser.read(ROOT / "pytest.ini", encoding="utf-8")
    lines = parser["pytest"]["filterwarnings"].strip().splitlines()
    pytester.makeini("[pytest]\nfilterwarnings =\n" + "".join(f"    {x}\n" for x in lines))
    return pytester


def counted(inner: pytest.Pytester, paths: list[str], *options: str) -> dict[str, int]:
    inner.makepyfile(INNER.replace("PATHS", repr(paths)))
    with warnings.catch_warnings():
        warnings.resetwarnings()  # the filters of the pytest around it
        return inner.runpytest_inprocess(*options).parseoutcomes()


def test_warnings_of_other_packages_turn_no_run_red(inner: pytest.Pytester) -> None:
    found = counted(inner, THEIR_FILES)
    assert found.pop("warnings") > 0, "they are shown"
    assert found == {"passed": 12 * 3 + 2 + 2}


def test_our_exceptions_that_nobody_caught_do(inner: pytest.Pytester) -> None:
    found = counted(inner, OUR_FILES, "-k", "destructor or thread")
    assert found["failed"] == 2 * len(OUR_FILES)
    assert "passed" not in found


def test_in_ci_every_warning_is_an_error(inner: pytest.Pytester) -> None:
    # This process has imported our packages, so pytest says that it cannot rewrite their asserts.
    imported = "ignore::pytest.PytestAssertRewriteWarning"
    outcomes = counted(inner, THEIR_FILES, "-W", "error", "-W", imported)
    assert outcomes["failed"] == 6 * 3 + 1 + 2
