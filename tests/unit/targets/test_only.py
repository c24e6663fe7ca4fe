"""ONLY of a target: the values of an argument that it takes; checks draw no others."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from precision_lib import ppo
from precision_lib.conformance.checks import find_check
from precision_lib.conformance.examiner import Examiner
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.runner import Outcome
from precision_lib.conformance.strategies import Case, within
from precision_lib.conformance.strategies.cases import Embedded
from precision_lib.targets import Target, TargetError, make_target

CHECK = "test_values_are_within_their_bound[importance_weights-ordinary-fp32]"
TOKEN = {"importance_weights": {"level": ("token",)}}


def by_token(*, level: str, **inputs: Any) -> Any:
    if level != "token":
        raise NotImplementedError(level)
    return ppo.importance_weights(level=level, **inputs)


def examined(target: Target) -> Outcome | ConformanceFailure:
    with Examiner(target, "cpu", 60, apart=False) as examiner:
        return examiner.examine(find_check(CHECK), 0, [])


def test_a_mode_that_a_target_does_not_take_is_not_drawn() -> None:
    core = SimpleNamespace(importance_weights=by_token, ONLY=TOKEN)
    found = examined(make_target("theirs", core))
    assert isinstance(found, Outcome)
    assert found.compared > 0


def test_without_it_the_mode_is_drawn_and_fails() -> None:
    found = examined(make_target("theirs", SimpleNamespace(importance_weights=by_token)))
    assert isinstance(found, ConformanceFailure)
    assert "NotImplementedError" in str(found)


def test_what_it_takes_is_still_tested() -> None:
    def doubled(**inputs: Any) -> Any:
        return 2 * by_token(**inputs)

    core = SimpleNamespace(importance_weights=doubled, ONLY=TOKEN)
    assert isinstance(examined(make_target("theirs", core)), ConformanceFailure)


def test_the_header_says_what_it_takes() -> None:
    core = SimpleNamespace(importance_weights=by_token, ONLY=TOKEN)
    line = make_target("theirs", core).capabilities()
    assert line.endswith("; importance_weights takes level token alone")


@pytest.mark.parametrize(
    "said",
    [
        "token",
        {"importance_weights": ("token",)},
        {"importance_weights": {"level": "token"}},
        {"importance_weights": {"level": ()}},
        {"importance_weights": {"levels": ("token",)}},
        {"importance": {"level": ("token",)}},
    ],
)
def test_what_names_nothing_of_the_interface_is_refused(said: object) -> None:
    with pytest.raises(TargetError, match=r"ONLY is .* give names of the interface and tuples"):
        make_target("theirs", SimpleNamespace(importance_weights=by_token, ONLY=said))


def test_a_value_is_replaced_in_the_small_case_of_the_truth_too() -> None:
    inputs = Inputs({"x": torch.ones(2)}, {"mode": "b"})
    small = Embedded(inputs, torch.zeros(4, dtype=torch.int64), (2, 2))
    case = Case(inputs, "seed=1", small)
    changed = within(case, {"mode": ("a", "c"), "absent": (1,)})
    assert changed.inputs.word("mode") == "a"
    assert changed.embedded is not None
    assert changed.embedded.inputs.word("mode") == "a"
    assert changed.recipe == "seed=1 mode=a"
    assert within(case, {"mode": ("a", "b")}) is case
