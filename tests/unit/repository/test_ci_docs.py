"""The workflows of docs/ci.md parse, and the commands of the documents exist.

The hazard. A command in a document is copied by somebody who cannot run it here: a renamed
option or a wrong indent is found by their first pull request.
"""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from precision_lib import cli
from tests.unit.suite_runs import ROOT, run_checkout

PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("ci", "gate", "pipeline", "targets", "training")),
)


def blocks(name: str) -> list[tuple[str, str]]:
    """Kind and text of each code block of a document."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)


BLOCKS = blocks("docs/ci.md")
WORKFLOWS: list[dict[Any, Any]] = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
SETUP = "./setup.sh --local -- "


def commands() -> list[list[str]]:
    """Every command behind setup.sh, in shell blocks and in workflows, as words."""
    lines = [line for kind, text in BLOCKS if not kind for line in _lines(text)]
    github, gitlab = WORKFLOWS
    lines += [step["run"] for step in github["jobs"]["gate"]["steps"] if "run" in step]
    lines += gitlab["precision"]["script"] + gitlab["precision"]["after_script"]
    mine = [line.strip() for line in lines if line.strip().startswith(SETUP)]
    words = [shlex.split(line.removeprefix(SETUP), comments=True) for line in mine]
    return [list(one) for one in dict.fromkeys(tuple(one) for one in words)]


def _lines(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_takes_these_options(words: list[str], tmp_path: Path) -> None:
    program, *arguments = words
    if program == "precision-forensics":
        assert callable(cli._parsed(arguments).run)
        return
    assert program == "pytest"
    # A user's own core, list and baseline are not here: what is asked is whether the options
    # exist, and one file is enough to ask.
    arguments = [
        a for a in arguments if not re.match(r"--(target|baseline|(update-)?known-failures)=", a)
    ]
    few = (str(ROOT / "tests/unit/test_formats.py"), "--collect-only", "-qq")
    done = run_checkout(*arguments, *few, cwd=tmp_path)
    assert "unrecognized arguments" not in done.stderr
    # 5: none of the few tests is of the tier that was asked for.
    assert done.returncode in (0, 5), done.stdout + done.stderr


def package_commands(name: str) -> list[list[str]]:
    """Every ``precision-forensics`` command in the shell blocks of a document, as words."""
    lines = (line for kind, text in blocks(name) if not kind for line in _lines(text))
    words = [
        shlex.split(line.removeprefix(SETUP), comments=True)
        for line in lines
        if line.removeprefix(SETUP).startswith("precision-forensics ")
    ]
    return [arguments for _, *arguments in words]


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_exist(name: str) -> None:
    commands = package_commands(name)
    assert commands, "nothing was looked at"
    assert [words for words in commands if not callable(cli._parsed(words).run)] == []


def test_a_command_with_a_wrong_option_is_refused() -> None:
    with pytest.raises(SystemExit):
        cli._parsed(["freeze", "--num_batch", "3", "--fp32"])


def test_workflows_gate_every_pull_request_and_keep_what_was_measured() -> None:
    github, gitlab = WORKFLOWS
    assert github[True] == ["pull_request"]  # YAML 1.1 reads the key "on" as true
    steps = github["jobs"]["gate"]["steps"]
    [gate] = [s for s in steps if "--baseline=baselines/cpu.json" in s.get("run", "")]
    assert "if" not in gate, "the gate itself may not be skipped"
    assert "continue-on-error" not in gate
    assert {s.get("if") for s in steps[steps.index(gate) + 1 :]} == {"always()"}
    assert gitlab["precision"]["artifacts"]["when"] == "always"
    assert gitlab["precision"]["artifacts"]["reports"]["junit"] == "results/junit.xml"
    assert any("--junit-xml=results/junit.xml" in c for c in gitlab["precision"]["script"])


def test_there_is_something_to_look_at() -> None:
    assert len(WORKFLOWS) == 2
    assert len(commands()) >= 9
    assert (ROOT / "baselines" / "cpu.json").is_file()


def test_the_files_that_workers_begin_with_exist() -> None:
    text = (ROOT / "conftest.py").read_text(encoding="utf-8")
    slow = re.search(r"^SLOW = (\(.*?^\))", text, flags=re.DOTALL | re.MULTILINE)
    assert slow
    names: tuple[str, ...] = ast.literal_eval(slow[1])
    assert [name for name in names if not (ROOT / "tests/unit" / name).is_file()] == []
