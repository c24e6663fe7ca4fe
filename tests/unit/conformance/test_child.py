"""A core that ends its process, or never returns, is named, and the run goes on."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from precision_lib import ppo
from precision_lib.conformance.checks import find_check
from precision_lib.conformance.child import MOST_DEATHS, Child, as_found, told
from precision_lib.conformance.examiner import LONG_RUN_SECONDS, Examiner
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.runner import Outcome, run
from precision_lib.conformance.surroundings import surroundings_put_back
from precision_lib.targets import make_target
from tests.unit.suite_runs import run_on


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What the child does with a question: leave, crash, sleep, or say its own number."""
    match question["do"]:
        case "leave":
            os._exit(0)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "sleep":
            time.sleep(60)
    return {"pid": os.getpid(), "long": "x" * question.get("length", 0)}


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child(answer)
    yield child
    child.close()


def asked(child: Child, do: str, seconds: float = 30.0, **more: Any) -> dict[str, Any]:
    return child.ask("whiten", {"do": do, **more}, seconds)


def test_one_child_answers_all_questions(child: Child) -> None:
    first, second = asked(child, ""), asked(child, "", length=200_000)
    assert first["pid"] == second["pid"] != os.getpid()
    assert len(second["long"]) == 200_000


@pytest.mark.parametrize(
    ("do", "seconds", "said"),
    [
        ("leave", 30.0, "whiten left its process with exit code 0"),
        ("crash", 30.0, "whiten ended its process by SIGSEGV"),
        ("sleep", 0.2, r"whiten did not return within 0\.2 s"),
    ],
)
def test_a_death_is_attributed_and_the_next_question_has_a_new_child(
    child: Child, do: str, seconds: float, said: str
) -> None:
    before = asked(child, "")["pid"]
    with pytest.raises(ConformanceFailure, match=said):
        asked(child, do, seconds)
    assert asked(child, "")["pid"] != before


def test_a_function_that_keeps_ending_its_process_is_not_called_again(child: Child) -> None:
    for _ in range(MOST_DEATHS):
        with pytest.raises(ConformanceFailure, match="left its process"):
            asked(child, "leave")
    with pytest.raises(ConformanceFailure, match="whiten was not called again: it ended its proc"):
        asked(child, "")
    assert child.ask("gae", {"do": ""}, 30.0)["pid"] != os.getpid()


def test_outcomes_and_failures_survive_the_way_between_processes() -> None:
    outcome = Outcome(3, 7, 0.25)
    assert as_found(told(outcome)) == outcome
    failure = ConformanceFailure("whiten: 1 of 2", Inputs({"x": torch.ones(1, 1)}), 5.0)
    failure.cause, failure.notes = ["right with 0: x"], ["a note"]
    same = as_found(told(failure))
    assert isinstance(same, ConformanceFailure)
    assert (str(same), same.times, same.case_text()) == (str(failure), 5.0, failure.case_text())
    assert same.signature() == failure.signature()


LEAVING = """
import os
from precision_lib.ppo import masked_mean
def whiten(x, mask):
    os._exit(0)
"""


def test_a_core_that_leaves_with_0_is_not_green_and_the_run_goes_on(tmp_path: Path) -> None:
    run = run_on(tmp_path, LEAVING, "-k", "single_token-fp32 and (whiten or masked_mean)")
    assert run.returncode == 1
    assert "whiten left its process with exit code 0" in run.stdout
    assert "1 failed, 1 passed" in run.stdout


def test_a_slow_core_is_announced_with_an_estimate() -> None:
    target = make_target("mine", ppo)
    with Examiner(target, "cpu", 60.0, apart=False) as examiner:
        examiner._spent = [2.0] * 20
        assert examiner.slow(600).startswith("slow core: about 20 minutes for 600 checks")
        examiner._spent = [LONG_RUN_SECONDS / 20 / 601] * 20
        assert examiner.slow(600) == ""


def numpy_raises() -> None:
    np.seterr(all="raise")


def elsewhere() -> None:
    os.chdir("/")


def variable() -> None:
    os.environ["THEIR_SWITCH"] = "secret"


def patch() -> None:
    torch.softmax = torch.relu  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (numpy_raises, "numpy's handling of errors"),
        (elsewhere, "the working directory"),
        (variable, "the environment: THEIR_SWITCH"),
        (patch, "functions of torch: torch.softmax"),
    ],
)
def test_what_a_core_changes_around_it_is_named_and_put_back(change: Any, said: str) -> None:
    def changing(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        result = ppo.whiten(x, mask)
        change()
        return result

    before = np.geterr(), Path.cwd(), dict(os.environ), torch.softmax
    check = find_check("test_property_holds[whiten-constant_gives_zero-fp32]")
    with pytest.raises(ConformanceFailure, match=f"whiten changed {said}") as failure:
        run(check, changing)
    assert "secret" not in str(failure.value)
    assert (np.geterr(), Path.cwd(), dict(os.environ), torch.softmax) == before


def test_nothing_changed_is_nothing_said() -> None:
    with surroundings_put_back() as changed:
        ppo.whiten(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert changed == []
