"""A command in a log is not silent, and a terminal's bar is tqdm's own."""

import sys
import threading
import time

import pytest

from precision_lib.reporting.bar import SECONDS, progress_bar


def test_a_log_gets_lines_while_one_unit_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert SECONDS < 30
    with progress_bar("freeze", "batch", 4, seconds=0.01) as bar:
        bar.update()
        for _ in range(500):
            written = capsys.readouterr().err
            if "freeze:  25%" in written:
                break
            time.sleep(0.01)
        else:
            pytest.fail("no line in 5 s")
    assert "\r" not in written
    assert "1/4" in written


def test_a_log_of_a_short_command_gets_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("freeze", "batch", 4) as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""


def test_a_command_without_stderr_runs_and_leaves_stdout_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar("freeze", "batch", 4, seconds=0.001) as bar:
        bar.update()
        time.sleep(0.02)
    assert bar.n == 1
    assert capsys.readouterr().out == ""


def test_an_error_inside_ends_the_lines_and_is_passed_on() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="planted"), progress_bar("freeze", "batch", seconds=60):
        raise ValueError("planted")
    assert threading.active_count() <= before + 1  # tqdm's own monitor stays


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("freeze", "batch", 4) as bar:
        bar.update(4)
    assert "freeze: 100%" in capsys.readouterr().err
