"""examples/my_rlhf as a new user runs it: from a module of functions to a gate."""

from pathlib import Path

import pytest

from tests.unit.suite_runs import ROOT, Done, run_suite

TARGET = "my_rlhf.precision_target"


def run(folder: Path, *arguments: str) -> Done:
    record = f"--json-report-file={folder / 'conformance.json'}"
    return run_suite(f"--target={TARGET}", record, *arguments, cwd=ROOT / "examples")


def test_what_fails_is_listed_and_then_only_what_is_new_is_red(tmp_path: Path) -> None:
    some = ("-k", "kl_penalty-near_identical or masked_mean-ragged")
    known = tmp_path / "known.toml"
    first = run(tmp_path, f"--update-known-failures={known}", *some)
    assert first.returncode == 1, first.stdout + first.stderr
    for name in ("README.md", "docs/targets.md"):
        shown = failure_in(name)
        assert [line for line in shown if line not in first.stdout.splitlines()] == []
    assert f"{known}: 5 known failures, 5 unexplained, 0 left the list" in first.stdout
    gate = (f"--known-failures={known}", f"--baseline={tmp_path / 'baseline.json'}")
    second = run(tmp_path, *gate, "--update-baseline", *some)
    assert second.returncode == 0, second.stdout
    third = run(tmp_path, *gate, *some)
    assert third.returncode == 0, third.stdout
    fourth = run(tmp_path, gate[0], "-k", "group_advantages-constant")
    assert fourth.returncode == 1, fourth.stdout


def failure_in(name: str) -> list[str]:
    """The failure that a document shows, line by line."""
    after = (ROOT / name).read_text(encoding="utf-8").split("```\nkl_penalty: ")[1]
    lines = f"kl_penalty: {after.split('```')[0]}".splitlines()
    assert len(lines) >= 6
    return lines


def test_the_target_is_as_short_as_the_document_says() -> None:
    lines = (ROOT / "examples/my_rlhf/precision_target.py").read_text().splitlines()
    assert f"is a target of {len(lines)} lines" in (ROOT / "docs/targets.md").read_text()
    assert len(lines) <= 30


@pytest.mark.parametrize("text", ["docs/targets.md", "examples/precision.yml"])
def test_what_is_written_to_be_copied_names_the_example(text: str) -> None:
    written = (ROOT / text).read_text()
    assert f"pytest --target={TARGET}" in written
    assert "--known-failures=" in written
    assert "--baseline=" in written
