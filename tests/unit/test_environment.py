"""Variables that torch reads once are set before it is imported, and never over the user's."""

import os
import sys

import pytest

from precision_lib.environment import VARIABLES, set_environment


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
