"""The releases that pyproject.toml allows: .ci/versions, with a fake pip, and the nightly job.

The hazard. A minimum that nobody installs is a guess, and a nightly job that runs nothing is green.
"""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
THIS_PYTHON = "{}.{}".format(*sys.version_info)

# Makes a virtual environment by copying itself, logs pip's calls, and hands all else on.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && exec cp "$FAKE/pytest" "$3/bin/" ;;
    "-m pip") echo "$*" >>"$FAKE/calls" ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
FAKE_PYTEST = """#!/usr/bin/env bash
echo "pytest $*" >>"$FAKE/calls"
[ "$*" != "${FAILS:-}" ]
"""


class Checkout:
    """A checkout with no more than .ci/versions needs, and fakes of python and pytest."""

    def __init__(self, base: Path, python: str) -> None:
        """Lay out the files; pyproject.toml asks for ``python`` or newer."""
        self.base, self.root = base, base / "checkout"
        (self.root / ".ci").mkdir(parents=True)
        script = (ROOT / ".ci" / "versions").read_text(encoding="utf-8")
        (self.root / ".ci" / "versions").write_text(script, encoding="utf-8")
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        minimum = f'requires-python = ">={python}"'
        project = project.replace(f'requires-python = "{PROJECT["requires-python"]}"', minimum)
        (self.root / "pyproject.toml").write_text(project, encoding="utf-8")
        for name, text in {"python": FAKE_PYTHON, "pytest": FAKE_PYTEST}.items():
            (base / name).write_text(text)
            (base / name).chmod(0o755)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        fakes = {"FAKE": str(self.base), "PYTHON": str(self.base / "python")}
        return subprocess.run(
            ["bash", self.root / ".ci" / "versions", *arguments],
            env={"PATH": "/usr/bin:/bin", "REAL_PYTHON": sys.executable} | fakes | env,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        log = self.base / "calls"
        return log.read_text().splitlines() if log.exists() else []


def test_the_oldest_set_has_the_minimum_of_every_dependency(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, THIS_PYTHON)
    result = checkout.run("oldest")
    assert result.returncode == 0, result.stderr
    constraints = (checkout.root / ".venv-oldest" / "constraints.txt").read_text().splitlines()
    assert {"torch==2.6", "transformers==5.17", "pytest-json-report==1.5.0"} <= set(constraints)
    extras = PROJECT["optional-dependencies"]
    asked = [
        *PROJECT["dependencies"],
        *(r for name in extras if name != "peers" for r in extras[name]),
    ]
    asked = [requirement for requirement in asked if not requirement.startswith(PROJECT["name"])]
    assert len(constraints) == len(asked)
    for line, requirement in zip(sorted(constraints), sorted(asked), strict=True):
        name, _, release = line.partition("==")
        assert requirement.split(",")[0] in (f"{name}>={release}", f"{name}=={release}")


@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_both_ends_run_quick_forensics_and_all_unit_tests(tmp_path: Path, end: str) -> None:
    checkout = Checkout(tmp_path, THIS_PYTHON)
    failed = f"-m forensics --quick --json-report-file=results/{end}.json"
    result = checkout.run(end, FAILS=failed)
    assert result.returncode == 1, "a failure must show"
    assert result.stdout.endswith(f"== failed: [pytest {failed}]\n")
    install, _, *tests = checkout.calls()
    assert f"-c .venv-{end}/constraints.txt -e .[dev,multi-gpu,parquet,ray]" in install
    assert tests == [f"pytest {failed}", "pytest tests/unit -n 2"]
    assert checkout.run(end).returncode == 0


def test_the_newest_set_has_no_constraints(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, THIS_PYTHON)
    checkout.run("newest")
    assert (checkout.root / ".venv-newest" / "constraints.txt").read_text() == ""


def test_the_oldest_set_asks_for_the_oldest_python(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, "3.2")
    result = checkout.run("oldest")
    assert result.returncode == 1
    assert f"has Python {THIS_PYTHON}, but pyproject.toml asks for >=3.2" in result.stderr
    assert checkout.calls() == []


@pytest.mark.parametrize("arguments", [(), ("old",)])
def test_another_end_is_a_usage_error(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = Checkout(tmp_path, THIS_PYTHON).run(*arguments)
    assert result.returncode == 2
    assert "Usage: bash .ci/versions oldest|newest" in result.stderr


def test_the_nightly_job_runs_both_ends_and_what_is_too_slow_for_every_commit() -> None:
    text = (ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8")
    workflow: dict[Any, Any] = yaml.safe_load(text)
    assert set(workflow[True]) == {"schedule", "workflow_dispatch"}  # YAML 1.1 reads "on" as true
    [job] = workflow["jobs"].values()
    runs = {one["command"]: one["python"] for one in job["strategy"]["matrix"]["include"]}
    ends = {".ci/versions oldest", ".ci/versions newest"}
    assert set(runs) == ends | {
        f".ci/{name}" for name in ("frameworks", "page", "selftest", "vllm", "wheel")
    }
    assert all((ROOT / command.split()[0]).is_file() for command in runs)
    assert f">={runs['.ci/versions oldest']}" == PROJECT["requires-python"]
    [test] = [step for step in job["steps"] if "run" in step]
    assert test == {"run": "bash ${{ matrix.command }}"}, "a failed run must fail the job"
