"""Variables and allocator are set before torch is imported, and never over the user's settings."""

import os
import resource
import subprocess
import sys

import pytest

from precision_lib import environment
from precision_lib.environment import VARIABLES, set_environment

#: A temporary as a forward over 2,048 tokens makes them, and its pages.
BLOCK_BYTES = 2**26
PAGES = BLOCK_BYTES // resource.getpagesize()
#: Prints whether the allocator was set, and the page faults of a second block before and after it.
SECOND_BLOCK = f"""
import resource
from precision_lib.environment import _keep_freed_memory

def faults():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = b"1" * {BLOCK_BYTES}
        del block
        last = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return last

default = faults()
print(_keep_freed_memory(), default, faults())
"""


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which no variable is set, as it was when this test is over."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "before")  # so that monkeypatch takes away what is set
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("unset")
def test_before_torch_each_variable_is_set_that_the_user_did_not_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_environment()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.usefixtures("unset")
def test_after_torch_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys.modules[__name__])
    set_environment()
    assert not set(VARIABLES) & set(os.environ)


@pytest.fixture
def allocator_calls(monkeypatch: pytest.MonkeyPatch, unset: None) -> list[bool]:
    """One entry per call of the allocator's setting; no variable of the user's, no torch."""
    calls: list[bool] = []
    for name in os.environ:
        if name.startswith(environment.ALLOCATOR_VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(environment, "_keep_freed_memory", lambda: calls.append(True))
    return calls


def test_before_torch_the_allocator_is_set(allocator_calls: list[bool]) -> None:
    set_environment()
    assert allocator_calls == [True]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_a_users_allocator_is_left_alone(
    name: str, allocator_calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "theirs")
    set_environment()
    assert not allocator_calls


def test_a_freed_block_is_used_again_without_page_faults() -> None:
    """The planted fault is glibc's default, in a process of its own: this one's heap is set."""
    done = subprocess.run(
        [sys.executable, "-c", SECOND_BLOCK], capture_output=True, text=True, check=True
    )
    was_set, default, after = done.stdout.split()
    if was_set == "False":
        pytest.skip("the allocator is not glibc's")
    assert int(after) < PAGES / 100
    assert int(default) >= PAGES / 2**9, "the default has no page faults: nothing was tested"
