"""The plug-in in somebody else's repository: silent until ``--target``, and then alone.

The hazards. A plug-in that pip installs takes part in every pytest run of its environment: an
option that another project has already would end that project's runs. And a run that obeys the
project's own settings would give another verdict than the same run elsewhere.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

import precision_lib.plugin as door
from precision_lib import cli
from precision_lib.plugin import options, packaged
from precision_lib.record.context import run_context
from tests.unit.small_blocks import read

pytest_plugins = ("pytester",)

#: Two conformance checks of one function, for seconds.
FEW = ("-k", "masked_mean and ragged and fp32")
CORE = """
import torch
def masked_mean(x, mask):
    return torch.where(mask, x.double(), 0.0).sum() / mask.sum().clamp(min=1)
"""
WRONG_CORE = """
def masked_mean(x, mask):
    return x.bfloat16()[mask].float().mean() if mask.any() else x.new_zeros(())
"""
INI = """
[pytest]
testpaths = checks
addopts = --strict-markers --strict-config -m slow --maxfail=1
filterwarnings = error
markers = slow: theirs
"""
TESTS = """
import os, pytest
@pytest.mark.slow
def test_theirs(request):
    assert "OMP_NUM_THREADS" not in os.environ
@pytest.mark.slow
def test_theirs_fails():
    assert False
"""


@pytest.fixture(scope="module", autouse=True)
def _imported_before_pytester() -> None:
    """pytester forgets what a run imported, and torch cannot import a part of it twice."""
    run_context("cpu", 0)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A repository with settings of its own; the plug-in is installed, and no other."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    pytester.makefile(".ini", pytest=INI)
    pytester.makepyfile(mycore=CORE, wrong_core=WRONG_CORE, **{"checks/test_theirs": TESTS})
    monkeypatch.syspath_prepend(pytester.path)
    return pytester


def run(
    project: pytest.Pytester, *arguments: str, plugins: Sequence[object] = (door,)
) -> pytest.RunResult:
    return project.runpytest_inprocess(
        "--disable-plugin-autoload", *arguments, plugins=list(plugins)
    )


def files(project: pytest.Pytester) -> set[str]:
    paths = (p.relative_to(project.path) for p in project.path.rglob("*"))
    return {str(p) for p in paths if "__pycache__" not in p.parts}


def theirs(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that pytest itself does not set."""
    own = ("PYTEST_VERSION", "PYTEST_CURRENT_TEST")
    return {name: value for name, value in environment.items() if name not in own}


def all_option_names() -> list[str]:
    names: list[str] = []
    options.add_all(lambda name, **_: names.append(name))
    return names


def test_importing_the_door_imports_nothing_and_the_suite_no_model_library() -> None:
    """In a process of its own: here everything is imported already."""
    code = (
        "import sys, pytest; before = set(sys.modules); import precision_lib.plugin;"
        "print(*sorted(set(sys.modules) - before), sep=',');"
        "import precision_lib.plugin.suite;"
        "print(*sorted({'torch', 'transformers', 'hypothesis'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["precision_lib,precision_lib.plugin", "", ""]


def test_a_run_on_a_core_imports_no_model_library(tmp_path: Path) -> None:
    """In a process of its own; it takes half the time of one that does."""
    (tmp_path / "mycore.py").write_text(CORE)
    code = (
        "import sys; from precision_lib.cli import main;"
        f"code = main({['conformance', 'mycore', '-q', *FEW]!r});"
        "print(code, sorted({'transformers', 'tokenizers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_run_without_its_options_is_as_if_it_were_not_there(project: pytest.Pytester) -> None:
    """Every option name is the project's, and so is the file of pytest-json-report."""
    flags = "\n".join(
        f"    parser.addoption({name!r}, action='store_true')" for name in all_option_names()
    )
    project.makeconftest(f"def pytest_addoption(parser):\n{flags}\n")
    environment, before = theirs(os.environ), files(project)
    json_report = ("-p", "pytest_jsonreport.plugin", "--json-report", "--json-report-file=own.json")
    done = run(project, "-p", "no:cacheprovider", "--gpu", "--target", *json_report)
    done.assert_outcomes(passed=1, failed=1)
    assert files(project) - before == {"own.json"}
    tests = json.loads((project.path / "own.json").read_text())["tests"]
    assert [test["outcome"] for test in tests] == ["passed", "failed"]
    assert theirs(os.environ) == environment


def test_it_adds_no_option_no_marker_no_ini_key_and_no_fixture(project: pytest.Pytester) -> None:
    for word in ("--help", "--markers", "--fixtures"):
        with_it, without = (
            [x for x in run(project, word, plugins=plugins).outlines if " in 0." not in x]
            for plugins in ([door], [])
        )
        assert with_it == without
        assert len(with_it) > 10


@pytest.mark.parametrize("owner", ["conftest", "another_plugin"])
def test_a_target_of_theirs_stays_theirs(project: pytest.Pytester, owner: str) -> None:
    project.makepyfile(
        **{owner: "def pytest_addoption(parser):\n    parser.addoption('--target')\n"},
        test_it="def test_it(pytestconfig): assert pytestconfig.getoption('target') == 'esp32'",
    )
    plugin = () if owner == "conftest" else ("-p", "another_plugin")
    for given in (["--target=esp32"], ["--target", "esp32"]):
        done = run(project, *plugin, "-m", "", *given, "test_it.py")
        done.assert_outcomes(passed=1)
    assert not (project.path / "results").exists()


def conformance(project: pytest.Pytester) -> dict[str, object]:
    """The part of the record that says what was tested and what came out."""
    record = read(project.path / "results" / "conformance.json")
    tests = [(test["nodeid"], test["outcome"]) for test in record["tests"]]
    return {"tests": tests, "counts": record["precision"]["conformance"]}


def test_with_target_the_packed_tests_run_and_no_others(project: pytest.Pytester) -> None:
    """Whatever the project's testpaths, addopts, filters and conftest.py say."""
    project.makeconftest("import torch\ndef pytest_addoption(parser): parser.addoption('--gpu')\n")
    done = run(project, "--target=mycore", *FEW)
    assert done.ret == 0
    found = conformance(project)
    assert isinstance(found["tests"], list)
    assert len(found["tests"]) > 0
    assert {test.split("::")[0] for test, _ in found["tests"]} == {
        "tests/forensics/test_conformance.py"
    }
    done.stdout.fnmatch_lines(
        ["*conformance of mycore to FP32", "record: results/conformance.json"]
    )
    assert "OMP_NUM_THREADS" not in os.environ  # torch was there: its threads are set instead


def test_the_command_gives_the_same_record_summary_and_exit_code(
    project: pytest.Pytester, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    assert cli.main(["conformance", "wrong_core", *FEW]) == 1
    by_command, printed = conformance(project), capsys.readouterr().out
    monkeypatch.delenv("PYTEST_ADDOPTS")
    done = run(project, "--target", "wrong_core", *FEW)
    assert done.ret == 1
    assert conformance(project) == by_command
    shown = ("function  ", "masked_mean  ", "  again: ")
    summaries = [
        [line for line in text.splitlines() if line.startswith(shown)]
        for text in (printed, done.stdout.str())
    ]
    assert summaries[0] == summaries[1]
    assert len(summaries[0]) > 2


def test_the_line_that_repeats_a_failure_works_there(project: pytest.Pytester) -> None:
    test = "tests/forensics/test_conformance.py::test_result_is_fp32_or_wider[masked_mean-bf16]"
    done = run(project, test, "--target=mycore")
    assert done.ret == 0
    done.assert_outcomes(passed=1)


def test_a_test_of_the_project_is_refused_beside_target(project: pytest.Pytester) -> None:
    done = run(project, "checks", "--target=mycore")
    assert done.ret == 4
    done.stderr.fnmatch_lines(["ERROR: checks is no test file of the suite: leave it out, or *"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["conformance", "no_such_core"], 4, "--target: target 'no_such_core'"),
        (["conformance", "mycore", "--known-failures="], 4, "--known-failures: needs the name"),
        (["conformance", "mycore", "--no-such-option"], 4, "unrecognized arguments"),
        (["run", "--update-known-failures=x.toml"], 4, "--update-known-failures: needs a --target"),
        (["run", "--baseline=none.json"], 4, "baseline none.json does not exist"),
        (["run", "--seed=x"], 4, "invalid int value"),
        (["conformance"], 4, "the following arguments are required: MODULE"),
        (["gate", "report.json", "--no-such-option"], 4, "unrecognized arguments"),
    ],
)
def test_usage_errors_end_with_4(
    project: pytest.Pytester,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    try:
        returned = cli.main(arguments)
    except SystemExit as error:
        returned = int(str(error.code))
    assert returned == code
    assert said in capsys.readouterr().err
    assert not (project.path / "results" / "conformance.json").exists()


def test_the_command_line_has_at_most_sixteen_commands_in_four_groups(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert len(re.findall(r"^    [a-z]", shown, flags=re.MULTILINE)) <= 16
    assert [heading in shown for heading in cli.HEADINGS.values()] == [True] * 4


def test_a_list_that_cannot_be_read_is_named_and_left_as_it_was(
    project: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = project.path / "known.toml"
    listed.write_text("not TOML")
    assert cli.main(["conformance", "mycore", f"--update-known-failures={listed}", *FEW]) == 4
    assert "--update-known-failures: " in capsys.readouterr().out
    assert listed.read_text() == "not TOML"


def test_the_threads_of_a_torch_that_is_there_are_one_and_then_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with packaged._undisturbed():
        inside = torch.get_num_threads()
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert (inside, after) == (1, 2)


def test_its_environment_is_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-v")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    with packaged._undisturbed():
        assert "PYTEST_ADDOPTS" not in os.environ
        assert sys.path[0] == str(tmp_path)
    assert os.environ["PYTEST_ADDOPTS"] == "-v"
    assert sys.path == path
