"""docs/frameworks.md: its tables come from the records, its defects from reproducers that run."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from precision_lib.targets import adapters, load_target
from precision_lib.targets.frameworks import FrameworkMissingError
from precision_lib.targets.known_failures import read_known_failures, shipped
from tests.unit.small_blocks import read, record
from tools.frameworks import FrameworksError, frameworks, main

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "docs/records/frameworks"
DEFECTS = tomllib.loads((RECORDS / "defects.toml").read_text())["defect"]
SCRIPTS = sorted(path.stem for path in (ROOT / "examples/reproducers").glob("*.py"))


def block(name: str = "trl") -> dict[str, Any]:
    return dict(read(RECORDS / f"{name}.json")["precision"])


def test_the_document_says_what_the_records_say(tmp_path: Path) -> None:
    """Filled again by its one command, it does not change."""
    document = (ROOT / "docs/frameworks.md").read_text()
    (tmp_path / "frameworks.md").write_text(document)
    records = [str(RECORDS / f"{name}.json") for name in adapters.NAMES]
    defects = ["--defects", str(RECORDS / "defects.toml")]
    assert main([*records, *defects, "--into", str(tmp_path / "frameworks.md")]) == 0
    assert (tmp_path / "frameworks.md").read_text() == document


@pytest.mark.parametrize("name", adapters.NAMES)
def test_a_record_is_of_the_release_of_its_list_and_all_its_failures_are_explained(
    name: str,
) -> None:
    found = block(name)["conformance"]
    path = shipped(name)
    assert path is not None
    known = read_known_failures(path)
    assert found["version"] == known.version
    counted = {test for counts in found["functions"].values() for test in counts["failed"]}
    assert counted == set(known.by_test())
    assert found["profile"] == "ci"


def test_a_failure_that_nobody_explained_is_shown_as_such() -> None:
    changed = block()
    name = "test_result_is_fp32_or_wider[entropy-fp32]"
    changed["conformance"]["functions"]["entropy"]["failed"].append(name)
    changed["conformance"]["failures"][name] = {"what": [], "input": "", "times": 0.0}
    text = frameworks([record(changed)], RECORDS / "defects.toml")
    assert "| unexplained | not on the list | not known | 1 |" in text
    before = frameworks([record(block())], RECORDS / "defects.toml")
    assert "unexplained" not in before


def test_a_record_of_something_else_is_refused() -> None:
    core = {"target": "precision_lib.ppo", "profile": "ci", "functions": {}}
    other = record(block() | {"conformance": core})
    with pytest.raises(FrameworksError, match=r"no record of a run on a framework: 'precision_lib"):
        frameworks([other], RECORDS / "defects.toml")


def test_defects_without_a_field_are_refused(tmp_path: Path) -> None:
    (tmp_path / "defects.toml").write_text('[[defect]]\nframework = "trl"')
    with pytest.raises(FrameworksError, match="function"):
        frameworks([record(block())], tmp_path / "defects.toml")


def test_there_are_at_least_ten_defects_each_with_its_reproducer() -> None:
    assert len(DEFECTS) >= 10
    assert sorted(entry["reproducer"] for entry in DEFECTS) == SCRIPTS
    assert {entry["framework"] for entry in DEFECTS} == set(adapters.NAMES)
    assert all(entry["got"] != entry["want"] for entry in DEFECTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_reproducer_does_not_import_this_project(script: str) -> None:
    source = (ROOT / "examples/reproducers" / f"{script}.py").read_text()
    assert "precision" not in source
    assert "tests" not in source


@pytest.mark.parametrize("entry", DEFECTS, ids=lambda entry: str(entry["reproducer"]))
def test_a_reproducer_prints_what_the_table_says(entry: dict[str, str], tmp_path: Path) -> None:
    try:
        load_target(entry["framework"])
    except FrameworkMissingError as error:
        pytest.skip(str(error))
    script = ROOT / "examples/reproducers" / f"{entry['reproducer']}.py"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    said = dict(line.split(maxsplit=1) for line in run.stdout.splitlines() if " " in line)
    assert (said["got"], said["want"]) == (entry["got"], entry["want"])


def test_the_command_refuses_what_is_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.json")]) == 4
    assert "none.json does not exist" in capsys.readouterr().err
