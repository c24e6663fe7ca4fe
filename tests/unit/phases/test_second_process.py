"""A second process gives what it sent before it ended, and costs nobody more than its work."""

import os
import signal
import time

import pytest

from precision_lib.models.loading import Checkpoint
from precision_lib.phases import second_process
from precision_lib.phases.second_process import SecondProcess, Send, may_help

#: More than a pipe holds.
LONG = "x" * 2**20


def test_what_was_sent_is_there_under_its_name_although_nobody_read_it() -> None:
    def work(send: Send) -> None:
        send("first", {"pid": os.getpid(), "numbers": [0.1, None, True]})
        send("long", LONG)
        send("last", 3)

    second = SecondProcess(work)
    second.start()
    assert second.wait_for("last") == 3
    assert second.get("long") == LONG
    first = second.get("first")
    assert first is not None
    assert first["pid"] != os.getpid()
    assert first["numbers"] == [0.1, None, True]
    assert second.wait_for("nobody sends this") is None, "it ended, so nothing more comes"
    second.close()


def test_a_process_that_is_killed_costs_what_it_had_not_sent() -> None:
    def work(send: Send) -> None:
        send("done", 1)
        os.kill(os.getpid(), signal.SIGKILL)

    second = SecondProcess(work)
    second.start()
    assert second.wait_for("rest") is None
    assert second.get("done") == 1
    assert second.failure == "it was killed"
    second.close()


def test_an_error_ends_it_and_nothing_else() -> None:
    second = SecondProcess(lambda send: send("not JSON", object()))
    second.start()
    assert second.wait_for("not JSON") is None
    assert second.failure == "TypeError: Object of type object is not JSON serializable"
    second.close()


def test_it_ends_when_the_first_process_is_gone() -> None:
    """The end of a process closes its descriptors, whatever has ended it."""
    second = SecondProcess(lambda _: time.sleep(3600))
    second.start()
    os.close(second._lifeline)
    second._lifeline = -1
    _, status = os.waitpid(second._pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    second._pid = 0
    second.close()


def test_a_refused_fork_leaves_everything_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refused)
    second = SecondProcess(lambda send: send("name", 1))
    second.start()
    assert second.wait_for("name") is None
    second.close()


@pytest.mark.parametrize(
    ("device", "cores", "limit", "wanted"),
    [
        ("cpu", 2, 2**28, True),
        ("cpu", 1, 2**28, False),
        ("cuda", 2, 2**28, False),
        ("cpu", 2, 100, False),
    ],
)
def test_it_is_started_for_a_small_model_on_two_cores_only(
    device: str,
    cores: int,
    limit: int,
    wanted: bool,
    tiny_llama: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(second_process, "usable_cores", lambda: cores)
    monkeypatch.setattr(second_process, "MODEL_BYTES", limit)
    assert may_help(device, tiny_llama.model) == wanted
