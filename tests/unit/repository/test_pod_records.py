"""runpod_start.sh --records, run on a copy of the script with fake commands and no GPU.

The hazard. A step that is named in docs/gpu.md and not run, or whose record goes elsewhere, is
missed when the GPU is gone.
"""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from precision_lib import cli
from tests.unit.repository.test_setup_script import Sandbox, last_line

ROOT = Path(__file__).parents[3]
STEPS = ["device", "quick", "report", "seed_1", "freeze", "replay_bf16_pure"]
STEPS += ["replay_fp32_baseline", "sweep", "benchmarks"]

# Stands for pytest and precision-forensics: fails when its arguments hold the word in FAILS.
FAKE_COMMAND = """#!/usr/bin/env bash
echo "${0##*/} ${*@Q}" >>"$FAKE/calls"
echo "output of $*"
[[ -z "${FAILS:-}" || "$*" != *"$FAILS"* ]]
"""


@pytest.fixture
def pod(tmp_path: Path) -> Sandbox:
    """An exported tree on a machine with a GPU, where everything is installed."""
    sandbox = Sandbox(tmp_path)
    (sandbox.checkout / "setup.sh").write_text('#!/usr/bin/env bash\nshift\nexec "$@"\n')
    for name in ("pytest", "precision-forensics"):
        sandbox.add_program(name, FAKE_COMMAND)
    sandbox.add_program("nvidia-smi", "#!/usr/bin/env bash\necho A GPU, 80 GiB, 570.1\n")
    sandbox.add_program("python3", "#!/usr/bin/env bash\n")
    for tool in {"tee", "mv"} - {path.name for path in sandbox.bin.iterdir()}:
        (sandbox.bin / tool).symlink_to(str(shutil.which(tool)))
    sandbox.env["PRECISION_FORENSICS_COMMIT"] = "0123abcd"
    return sandbox


def calls(pod: Sandbox) -> list[list[str]]:
    """The words of each command that the steps ran."""
    log = pod.base / "calls"
    return [shlex.split(line) for line in log.read_text().splitlines()] if log.exists() else []


def finished(pod: Sandbox) -> set[str]:
    """The steps that left their output as finished."""
    return {path.stem for path in (pod.checkout / "results" / "gpu").glob("*.log")}


def test_every_step_runs_once_on_the_gpu(pod: Sandbox) -> None:
    result = pod.run("--records", script="runpod_start.sh")
    assert result.returncode == 0, result.stderr
    assert (
        re.findall(r"runpod_start.sh: (\w+): (?:pytest|precision-forensics) ", result.stderr)
        == STEPS
    )
    assert finished(pod) == set(STEPS)
    log = pod.checkout / "results" / "gpu" / "report.log"
    assert log.read_text().startswith("output of -m forensics --gpu")
    commands = calls(pod)
    assert len(commands) == len(STEPS)
    for program, *arguments in commands:
        assert "--gpu" in arguments or arguments[arguments.index("--device") + 1] == "cuda"
        if program == "precision-forensics":
            assert callable(cli._parser().parse_args(arguments).run)

    again = pod.run("--records", script="runpod_start.sh")
    assert again.returncode == 0
    assert again.stderr.count("finished before") == len(STEPS)
    assert calls(pod) == commands


def test_a_failed_step_is_named_and_alone_run_again(pod: Sandbox) -> None:
    result = pod.run("--records", script="runpod_start.sh", FAILS="--seed 1 -k")
    assert result.returncode == 1
    assert "failed: seed_1." in last_line(result.stderr)
    assert finished(pod) == set(STEPS) - {"seed_1"}
    before = len(calls(pod))
    assert pod.run("--records", script="runpod_start.sh").returncode == 0
    [command] = calls(pod)[before:]
    assert command[-2:] == ["-k", "not conformance"]


def test_records_of_two_commits_are_not_mixed(pod: Sandbox) -> None:
    pod.run("--records", script="runpod_start.sh")
    before = calls(pod)
    other = pod.run("--records", script="runpod_start.sh", PRECISION_FORENSICS_COMMIT="4567")
    assert other.returncode == 1
    assert "holds records of commit 0123abcd, but this is 4567" in last_line(other.stderr)
    assert calls(pod) == before


def test_records_need_a_commit(pod: Sandbox) -> None:
    result = pod.run("--records", script="runpod_start.sh", PRECISION_FORENSICS_COMMIT="")
    assert result.returncode == 1
    assert "set PRECISION_FORENSICS_COMMIT" in last_line(result.stderr)
    assert calls(pod) == []


@pytest.mark.parametrize("changes", ["", " M README.md"])
def test_a_checkout_must_be_clean(pod: Sandbox, changes: str) -> None:
    (pod.checkout / ".git").mkdir()
    answers = f'[ "$1" = rev-parse ] && echo 89ef || echo -n "{changes}"\n'
    pod.add_program("git", f"#!/usr/bin/env bash\n{answers}")
    result = pod.run("--records", script="runpod_start.sh")
    if changes:
        assert result.returncode == 1
        assert "the checkout has changes" in last_line(result.stderr)
        assert calls(pod) == []
    else:
        assert result.returncode == 0, result.stderr
        assert (pod.checkout / "results" / "gpu" / "commit").read_text() == "89ef\n"


def test_the_page_names_every_step_and_its_record(pod: Sandbox) -> None:
    pod.run("--records", script="runpod_start.sh")
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE) == STEPS
    files = {word.split("=")[-1] for command in calls(pod) for word in command if "/gpu/" in word}
    assert len(files) == len(STEPS)
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for file in files:
        name = file.removeprefix("results/gpu/")
        assert any(f"`{name}" in row for row in rows), f"{name} is not on the page"


def test_the_pages_commands_exist() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^\./setup\.sh --local -- (.*)$", page, re.MULTILINE)
    assert len(commands) == 5
    for program, *arguments in map(shlex.split, commands):
        if program == "precision-forensics":
            assert callable(cli._parser().parse_args(arguments).run)
        else:
            assert (program, arguments[0]) == ("python", "-m")
            assert callable(import_module(arguments[1]).main)
