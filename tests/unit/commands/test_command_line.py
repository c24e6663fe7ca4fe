"""The commands and the pytest options as a user meets them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from precision_lib import cli
from precision_lib.record.recorder import load_cells
from tests.unit.conftest import MODEL_LIBRARY_AT_COLLECTION
from tests.unit.small_blocks import read
from tests.unit.suite_runs import ROOT, Done, run_checkout, run_suite


@pytest.fixture(autouse=True)
def _without_gpu_and_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def run(tmp_path: Path, *arguments: str) -> Done:
    """The suite with its record below ``tmp_path``."""
    return run_suite(f"--json-report-file={tmp_path / 'report.json'}", *arguments)


def command(*arguments: str) -> int:
    """Exit code of ``precision-forensics``."""
    try:
        return cli.main(arguments)
    except SystemExit as error:  # argparse's own
        return int(str(error.code))


def test_gpu_without_a_gpu_is_a_usage_error_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "forensics", "--gpu")
    assert done.returncode == 4
    [line] = [x for x in done.stderr.splitlines() if x.strip()]
    assert line.startswith("ERROR: --gpu: no CUDA device")
    assert not (tmp_path / "report.json").exists()


def test_a_bad_matrix_is_a_usage_error_that_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('[mine]\npolicy = "bf17"\n')
    done = run(tmp_path, "-m", "forensics", f"--matrix={tmp_path / 'm.toml'}")
    assert done.returncode == 4
    assert "missing reference, reward, value, kl" in done.stderr


def test_collection_loads_no_model_writes_no_record_and_leaves_tiers_on_request_out(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """transformers is what loads models; collecting must not even import it.

    Of the unit tests a few stand for all here; this run's own collection answers for the others.
    """
    assert not pytestconfig.stash[MODEL_LIBRARY_AT_COLLECTION]
    watcher = tmp_path / "watch_imports.py"
    watcher.write_text(
        "import sys\n"
        "def pytest_unconfigure(config):\n"
        "    print('TRANSFORMERS', 'transformers' in sys.modules)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    arguments = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "watch_imports"]
    arguments.append(f"--ignore-glob={ROOT}/tests/unit/*/*")
    record = f"--json-report-file={tmp_path / 'report.json'}"
    done = subprocess.run(
        [*arguments, record], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert "TRANSFORMERS False" in done.stdout
    assert "test_cell_has_a_verdict[bf16_pure]" in done.stdout
    assert "tests/unit/" in done.stdout
    assert not any(f"tests/{tier}/" in done.stdout for tier in ("selftest", "sweep", "benchmarks"))
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [("no-such-directory", "there is no such directory"), ("tokenless", "encodes text to nothing")],
)
def test_a_model_that_does_not_load_ends_the_run_in_one_line(
    model: str, message: str, tmp_path: Path, saved_checkpoint: Callable[[str], Path]
) -> None:
    (tmp_path / "tokenless").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "tokenless" / name).write_bytes((saved_checkpoint("Qwen2") / name).read_bytes())
    done = run(tmp_path, "-m", "forensics", "-k", "h1", f"--model={tmp_path / model}")
    assert done.returncode == 4
    [line] = [x for x in done.stderr.splitlines() if x.startswith("ERROR: ")]
    assert line.startswith("ERROR: --model, --reward-model: ")
    assert message in line
    assert "Traceback" not in done.stdout + done.stderr
    assert "collected" not in done.stdout, "it was known before the tests were collected"
    assert not (tmp_path / "report.json").exists(), "a run without cells leaves no record"


def test_an_unwritable_place_is_noticed_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_suite(f"--json-report-file={tmp_path / 'file' / 'r.json'}")
    assert done.returncode == 4
    assert "cannot write to" in done.stderr


def test_a_run_without_cells_keeps_the_measured_record(tmp_path: Path) -> None:
    """The default path belongs to measurements; unit tests alone report beside it."""
    (tmp_path / "results").mkdir()
    kept = tmp_path / "results" / "report.json"
    kept.write_text("measured")
    done = run_checkout(str(ROOT / "tests/unit/test_matrix.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert kept.read_text() == "measured"
    record = read(tmp_path / "results" / "tests.json")
    assert record["exitcode"] == 0
    assert not record["precision"]["complete"]


@pytest.mark.parametrize("tier", ["selftest", "benchmark"])
def test_tiers_on_request_run_when_they_are_named(tier: str) -> None:
    few = [f"--ignore={ROOT / 'tests' / name}" for name in ("unit", "forensics", "sweep")]
    asked = run_checkout("--collect-only", "-q", "-m", tier, *few)
    lines = [line for line in asked.stdout.splitlines() if "::" in line]
    assert len(lines) > 3
    assert all(line.startswith(f"tests/{tier}") for line in lines)


@pytest.mark.parametrize(
    "arguments", [(), ("tests/forensics",), ("tests/unit", "tests/sweep"), ("-m", "sweep")]
)
def test_what_is_measured_does_not_run_on_several_workers(arguments: tuple[str, ...]) -> None:
    done = run_checkout(*arguments, "-n", "2")
    assert done.returncode == 4
    assert "-n is for the unit tests: give tests/unit, or a part of it" in done.stderr


def test_forensics_on_a_users_checkpoint_and_matrix(
    tmp_path: Path, saved_checkpoint: Callable[[str], Path]
) -> None:
    """The cells of a locally saved Qwen with one configuration more, and the summary table."""
    matrix = tmp_path / "mine.toml"
    components = ("policy", "reference", "reward", "value", "kl")
    matrix.write_text("[mine]\n" + "".join(f'{c} = "fp16"\n' for c in components))
    done = run(
        tmp_path,
        "tests/forensics/test_h1_kl_collapse.py",
        "--quick",
        f"--matrix={matrix}",
        f"--model={saved_checkpoint('Qwen3')}",
        "-k",
        "test_cell_has_a_verdict or test_observed or identical or controls",
    )
    assert done.returncode == 0, done.stdout
    block = read(tmp_path / "report.json")["precision"]
    assert block["complete"]
    assert [c["configuration"] for c in block["cells"]][-1] == "mine"
    assert block["cells"][-1]["evidence"]["observed_formats"]["kl"] == "fp16"
    assert block["context"]["checkpoint"]["name"] == str(saved_checkpoint("Qwen3"))
    assert "H1: log_ratio_nsr (RMS error / RMS signal), impaired above 0.32" in done.stdout
    assert f"record: {tmp_path / 'report.json'}" in done.stdout


@pytest.mark.parametrize("architecture", ["GPT2", "Qwen2"])
def test_probe_command_on_a_saved_checkpoint(
    architecture: str,
    tmp_path: Path,
    saved_checkpoint: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, model = tmp_path / "out", str(saved_checkpoint(architecture))
    arguments = ["--num_prompts", "8", "--seq_lengths", "8", "16", "--output_dir", str(out)]
    capsys.readouterr()
    assert command("probe", *arguments, "--model", model) == 0
    printed = capsys.readouterr()
    block = read(out / "record.json")["precision"]
    assert block["complete"]
    assert len(block["cells"]) == 12
    assert block["context"]["probe"]["seq_lengths"] == [8, 16]
    assert len(block["cells"][0]["evidence"]["curve"]) == 7
    assert set(block["cells"][0]["evidence"]["by_length"]) == {"8", "16"}
    assert "\033" not in printed.out, "no colour outside a terminal"
    assert printed.err == "", "no progress bar outside a terminal"
    kept = [cell.configuration for cell in load_cells(out / "cells.jsonl")]
    assert kept == [cell["configuration"] for cell in block["cells"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "--model", "no/such-model"], "there is no such directory"),
        (["probe", "--device", "cuda"], "--device cuda: no CUDA device"),
        (["probe", "--num_prompts", "7"], "num_prompts = 7: an interval over sequences needs at"),
        (["probe", "--seq_lengths", "4096"], "and the model has 2048 positions; use shorter "),
        (["probe", "--output_dir", "/dev/null/x"], "cannot write to /dev/null/x (Not a directory)"),
        (["probe", "--seq_lengths", "0"], "give lengths of at least 1 token"),
        (["probe", "--matrix", "nowhere.toml"], "nowhere.toml does not exist"),
        (["prob"], "invalid choice: 'prob'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_usage_is_exit_code_4_with_the_reason(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 4
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err


def test_a_child_finds_the_package_where_it_is_not_installed(tmp_path: Path) -> None:
    """-S leaves out the installed packages, and the directory holds none."""
    code = "import precision_lib; print(precision_lib.__file__)"
    command = [sys.executable, "-S", "-c", code]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(out.stdout.strip()) == ROOT / "precision_lib" / "__init__.py"


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, precision_lib.cli; print({'torch', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
