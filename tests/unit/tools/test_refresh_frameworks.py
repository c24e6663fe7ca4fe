"""The command that makes lists, records and tables of the frameworks again."""

import subprocess
from pathlib import Path

import pytest

from precision_lib.targets.known_failures import Known, KnownFailures
from precision_lib.targets.known_failures.refreshed import UNEXPLAINED, as_toml
from tools import frameworks, refresh_frameworks

EXPLAINED = Known("a", "format", "16 bits", "", "", "")


@pytest.mark.parametrize(("entry", "code"), [(EXPLAINED, 0), (UNEXPLAINED, 1)])
def test_it_runs_each_framework_and_fails_while_a_failure_is_unexplained(
    entry: Known,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> None:
        commands.append(command)
        text = as_toml(KnownFailures("trl", "1", (entry,)))
        (tmp_path / "trl.toml").write_text(text)

    filled: list[list[str]] = []

    def fill(arguments: list[str]) -> int:
        filled.append(arguments)
        return 0

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(refresh_frameworks, "LISTS", tmp_path)
    monkeypatch.setattr(frameworks, "main", fill)
    assert refresh_frameworks.main(["trl"]) == code
    assert "--target=trl" in commands[0]
    assert "--known-failures=none" in commands[0]
    assert f"--update-known-failures={tmp_path / 'trl.toml'}" in commands[0]
    assert "--json-report-file=docs/records/frameworks/trl.json" in commands[0]
    assert filled[0][-2:] == ["--into", "docs/frameworks.md"]
    assert ("is unexplained" in capsys.readouterr().out) == bool(code)
