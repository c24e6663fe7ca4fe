"""setup.sh and runpod_start.sh, run on a copy of the scripts with a fake Python and no network.

The fake stands for python3 and for .venv/bin/python. It logs pip's calls instead of running
pip, makes a virtual environment by copying itself, and hands all else to the real Python.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]

# All that the scripts may call besides Python. Nothing else is on PATH.
TOOLS = ["bash", "cat", "cksum", "cp", "dirname", "env", "mkdir", "mktemp", "rm"]

FAKE_PYTHON = r"""#!/usr/bin/env bash
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && exec cp "$0" "$3/bin/python" ;;
    "-m pip")
        echo "$*" >>"$FAKE/pip.log"
        while [ "$1" != -c ]; do shift; done
        cat "$2" >"$FAKE/constraints"
        exit "${PIP_EXIT:-0}"
        ;;
    "-c "*)
        exec "$REAL_PYTHON" -c "import sys, sysconfig
sys.version_info = (VERSION, 'final', 0)
sysconfig.get_path = lambda name: '$FAKE/' + name
$2"
        ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
"""


class Sandbox:
    """A copy of the scripts, and a PATH with a fake python3 and little else."""

    def __init__(self, base: Path) -> None:
        """Copy the scripts and lay out the fakes."""
        self.base = base
        self.checkout = base / "check out"
        self.bin = base / "bin"
        for directory in (self.checkout, self.bin, base / "purelib"):
            directory.mkdir()
        for name in ("setup.sh", "runpod_start.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.checkout)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.env = {"PATH": str(self.bin), "FAKE": str(base), "REAL_PYTHON": sys.executable}
        self.add_python("python3", "3, 11, 9")

    def add_program(self, name: str, text: str) -> None:
        """Put an executable script on PATH."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def add_python(self, name: str, version: str) -> None:
        """Put a fake Python on PATH."""
        self.add_program(name, FAKE_PYTHON.replace("VERSION", version))

    def add_package(self, name: str, version: str, code: str = "") -> None:
        """Make a fake package importable before the real one of that name."""
        libraries = self.base / "libraries"
        information = libraries / f"{name}-{version}.dist-info"
        information.mkdir(parents=True)
        (libraries / f"{name}.py").write_text(code)
        (information / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        self.env["PYTHONPATH"] = str(libraries)

    def run(
        self, *arguments: str, script: str = "setup.sh", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script from a directory that is not the checkout."""
        return subprocess.run(
            [self.checkout / script, *arguments],
            env=self.env | env,
            cwd=self.base,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def venv(self) -> Path:
        """The virtual environment of the checkout."""
        return self.checkout / ".venv"

    @property
    def pip_calls(self) -> list[str]:
        """The arguments of each call of pip install."""
        log = self.base / "pip.log"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def constraints(self) -> list[str]:
        """The constraints that the last call of pip install was given."""
        return (self.base / "constraints").read_text().splitlines()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A fresh sandbox."""
    return Sandbox(tmp_path)


def last_line(text: str) -> str:
    """The last line, which must say what went wrong."""
    return text.splitlines()[-1]


def test_help_explains_both_modes(sandbox: Sandbox) -> None:
    result = sandbox.run("--help")
    assert result.returncode == 0
    for words in ("--local", "(without)", "current environment", "Examples:", "PYTHON"):
        assert words in result.stdout
    assert not sandbox.venv.exists()


@pytest.mark.parametrize("arguments", [["--locl"], ["--local", "pytest"]])
def test_unknown_argument_is_a_usage_error(sandbox: Sandbox, arguments: list[str]) -> None:
    result = sandbox.run(*arguments)
    assert result.returncode == 2
    assert f"unknown argument '{arguments[-1]}'" in result.stderr
    assert "Usage:" in result.stderr
    assert result.stdout == ""


def test_first_call_installs_under_the_constraints(sandbox: Sandbox) -> None:
    result = sandbox.run("--local")
    assert result.returncode == 0, result.stderr
    (call,) = sandbox.pip_calls
    assert call.endswith("-c constraints.txt -e .[dev]")
    assert last_line(result.stderr).endswith(f"source '{sandbox.venv}/bin/activate'")
    assert result.stdout == ""


def test_command_gets_its_arguments_and_passes_its_exit_code_on(sandbox: Sandbox) -> None:
    script = (
        'printf "[%s]" "$@"; echo; echo "$PWD"; echo "$VIRTUAL_ENV"; echo "${PATH%%:*}"; exit 7'
    )
    arguments = ["two words", "", "*", "--help", "$HOME"]
    result = sandbox.run("--local", "--", "bash", "-c", script, "bash", *arguments)
    assert result.returncode == 7
    assert result.stdout.splitlines() == [
        "".join(f"[{argument}]" for argument in arguments),
        str(sandbox.checkout),
        str(sandbox.venv),
        str(sandbox.venv / "bin"),
    ]


def test_second_call_does_not_call_pip(sandbox: Sandbox) -> None:
    sandbox.run("--local")
    result = sandbox.run("--local", "--", "bash", "-c", "echo fine")
    assert (result.returncode, result.stdout, result.stderr) == (0, "fine\n", "")
    assert len(sandbox.pip_calls) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_update_the_environment(sandbox: Sandbox, name: str) -> None:
    """A change is installed into the same .venv; while that fails, .venv is kept and stale."""
    sandbox.run("--local")
    witness = sandbox.venv / "witness"
    witness.touch()
    with (sandbox.checkout / name).open("a") as file:
        file.write("# changed\n")
    failed = sandbox.run("--local", PIP_EXIT="1")
    assert failed.returncode == 1
    assert sandbox.run("--local").returncode == 0
    assert len(sandbox.pip_calls) == 3
    assert witness.exists()


def test_failing_pip_is_reported_and_tried_again(sandbox: Sandbox) -> None:
    result = sandbox.run("--local", "--", "bash", "-c", "echo ran", PIP_EXIT="23")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "run the same command again" in last_line(result.stderr)
    again = sandbox.run("--local", "--", "bash", "-c", "echo ran")
    assert (again.returncode, again.stdout) == (0, "ran\n")
    assert len(sandbox.pip_calls) == 2


def test_moved_checkout_is_installed_anew(sandbox: Sandbox) -> None:
    """A .venv that moved with its checkout points to the old place, so it is replaced."""
    sandbox.run("--local")
    old = str(sandbox.checkout)
    sandbox.checkout = sandbox.checkout.rename(sandbox.base / "elsewhere")
    result = sandbox.run("--local")
    assert result.returncode == 0
    assert f"in place of that of {old}, Python 3.11.9" in result.stderr
    assert len(sandbox.pip_calls) == 2


def test_another_python_is_installed_anew(sandbox: Sandbox) -> None:
    sandbox.add_python("python3.12", "3, 12, 4")
    sandbox.run("--local")
    result = sandbox.run("--local", PYTHON="python3.12")
    assert result.returncode == 0
    assert "(Python 3.12.4)" in result.stderr
    for env in ({"PYTHON": "python3.12"}, {"PYTHON": "bin/python3.12"}, {}):
        assert sandbox.run("--local", **env).stderr.startswith("setup.sh: ready")
    assert len(sandbox.pip_calls) == 2


def test_foreign_venv_is_left_alone(sandbox: Sandbox) -> None:
    sandbox.venv.mkdir()
    (sandbox.venv / "mine").touch()
    result = sandbox.run("--local")
    assert result.returncode == 1
    assert "was not made by setup.sh. Move or remove it" in last_line(result.stderr)
    assert (sandbox.venv / "mine").exists()


@pytest.mark.parametrize("mode", [["--local"], []])
def test_old_python_is_named_with_its_version(sandbox: Sandbox, mode: list[str]) -> None:
    sandbox.add_python("python3", "3, 8, 10")
    sandbox.add_python("python3.11", "3, 10, 2")
    result = sandbox.run(*mode)
    assert result.returncode == 1
    message = last_line(result.stderr)
    assert "3.11 or newer" in message
    assert "python3 (3.8.10), python3.13 (does not run)" in message
    assert "python3.11 (3.10.2)." in message
    assert "PYTHON=" in message
    assert not sandbox.venv.exists()


def test_minimum_python_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    minimum = project["requires-python"].removeprefix(">=")
    script = (ROOT / "setup.sh").read_text()
    assert f"version_info < ({minimum.replace('.', ', ')})" in script
    assert f"Python {minimum} or newer" in script


def test_newer_python_is_found_beside_an_old_one(sandbox: Sandbox) -> None:
    sandbox.add_python("python3", "3, 8, 10")
    sandbox.add_program("python3.12", "#!/usr/bin/env bash\nexit 127\n")
    sandbox.add_python("python3.13", "3, 13, 1")
    result = sandbox.run("--local")
    assert result.returncode == 0
    assert "python3.13' (Python 3.13.1)" in result.stderr


def test_python_that_does_not_run_is_named(sandbox: Sandbox) -> None:
    result = sandbox.run("--local", PYTHON="/no/such/python")
    assert result.returncode == 1
    assert "Tried: /no/such/python (does not run)." in last_line(result.stderr)


def test_missing_venv_module(sandbox: Sandbox) -> None:
    """Debian ships Python without venv: the message names the package to install."""
    text = FAKE_PYTHON.replace("VERSION", "3, 12, 3")
    sandbox.add_program("python3", text.replace("\n$2", "\nsys.modules['ensurepip'] = None\n$2"))
    result = sandbox.run("--local")
    assert result.returncode == 1
    assert "apt install python3.12-venv" in last_line(result.stderr)
    assert not sandbox.venv.exists()


def test_current_environment_is_recognised_as_done(sandbox: Sandbox) -> None:
    for _ in range(2):
        result = sandbox.run("--", "bash", "-c", "echo ${PATH%%:*}; exit 5")
        assert (result.returncode, result.stdout) == (5, f"{sandbox.base}/scripts\n")
    assert len(sandbox.pip_calls) == 1
    assert not sandbox.venv.exists()


def test_current_environment_keeps_what_fits(sandbox: Sandbox) -> None:
    """An installed torch is pinned as it is, a transformers that is too old by constraints.txt."""
    pytest.importorskip("pip", reason="setup.sh reads the constraints with pip's own parser")
    sandbox.add_package("torch", "2.8.0+cu128")
    sandbox.add_package("sympy", "1.13.3")  # required by torch, not named in pyproject.toml
    sandbox.add_package("transformers", "4.57.0")
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    (transformers,) = (line for line in pinned if line.startswith("transformers=="))

    result = sandbox.run()
    assert result.returncode == 0, result.stderr
    assert "keeping the installed torch 2.8.0+cu128" in result.stderr
    assert "replacing transformers 4.57.0" in result.stderr
    assert "torch==2.8.0+cu128" in sandbox.constraints
    assert transformers in sandbox.constraints
    assert not any(line.startswith("sympy") for line in sandbox.constraints)


def test_current_environment_replaces_a_torch_that_is_too_old(sandbox: Sandbox) -> None:
    pytest.importorskip("pip", reason="setup.sh reads the constraints with pip's own parser")
    sandbox.add_package("torch", "2.4.0")
    result = sandbox.run()
    assert "replacing torch 2.4.0, since pyproject.toml asks for torch>=2.6" in result.stderr
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert {line for line in pinned if line.startswith("torch==")} <= set(sandbox.constraints)


def test_pod_script_refuses_what_it_cannot_do(sandbox: Sandbox) -> None:
    """An unknown option and a machine without GPU end before anything is installed."""
    unknown = sandbox.run("--fast", script="runpod_start.sh")
    assert unknown.returncode == 2
    assert "unknown argument '--fast'" in unknown.stderr

    no_driver = sandbox.run("--quick", script="runpod_start.sh")
    assert no_driver.returncode == 1
    assert "no nvidia-smi on PATH" in last_line(no_driver.stderr)

    sandbox.add_program("nvidia-smi", "#!/usr/bin/env bash\necho No devices were found\nexit 6\n")
    no_device = sandbox.run("--quick", script="runpod_start.sh")
    assert no_device.returncode == 1
    assert "No devices were found" in last_line(no_device.stderr)

    assert sandbox.run("--help", script="runpod_start.sh").returncode == 0
    assert sandbox.pip_calls == []


@pytest.mark.parametrize("usable", [True, False])
def test_pod_script_runs_the_forensics_tests(sandbox: Sandbox, usable: bool) -> None:
    """With a GPU that torch can use pytest is run; without, the versions are named."""
    torch = f"""
class cuda: is_available = staticmethod(lambda: {usable})
class version: cuda = "12.8"
__version__ = "2.8.0+cu128"
"""
    sandbox.add_package("torch", "2.8.0+cu128", code=torch)
    sandbox.add_package("transformers", "5.17.0")
    sandbox.add_program("nvidia-smi", "#!/usr/bin/env bash\necho A GPU, 80 GiB, 570.1\n")
    sandbox.add_program("pytest", '#!/usr/bin/env bash\necho "pytest $*"\nexit 9\n')
    result = sandbox.run("--quick", script="runpod_start.sh")
    assert "GPU: A GPU, 80 GiB, 570.1" in result.stderr
    if usable:
        assert (result.returncode, result.stdout) == (9, "pytest -m forensics --gpu\n")
        assert (sandbox.checkout / "results").is_dir()
        sweep = sandbox.run(script="runpod_start.sh")
        assert (sweep.returncode, sweep.stdout) == (9, "pytest -m sweep --gpu\n")
    else:
        assert (result.returncode, result.stdout) == (1, "")
        assert "torch 2.8.0+cu128, built for CUDA 12.8, cannot use" in last_line(result.stderr)
    assert len(sandbox.pip_calls) == 1
