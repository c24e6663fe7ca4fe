"""What a run does not go on from: another one's state, a damaged one, lines that do not fit."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from precision_lib.models.pipeline import Pipeline
from precision_lib.models.value_head import ValueHead
from precision_lib.training import state
from precision_lib.training.directory import alone, read_lines
from precision_lib.training.settings import PPOSettings
from precision_lib.training.state import SCHEMA, StateError, identity, read_state
from precision_lib.training.summary import SummaryError
from tests.unit.small_pipelines import files_of
from tests.unit.small_runs import (
    configuration,
    pipeline,
    settings,
    step_lines,
    train,
    variant,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stopped")
    train(directory, stop_before=2)
    return directory


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A run that was stopped before step 2, to damage."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("completed")
    train(directory, max_steps=1)
    return directory


def check_refused(directory: Path, message: str, *arguments: Any, **options: Any) -> None:
    """A :class:`StateError`, and not a byte of the directory is another."""
    before = files_of(directory)
    with pytest.raises(StateError, match=message):
        train(directory, *arguments, resume=True, **options)
    assert files_of(directory) == before


OTHER: dict[str, Any] = {
    **dict.fromkeys(("epochs", "seed"), 2),
    **dict.fromkeys(("gamma", "lam", "clip_range", "learning_rate", "kl_coefficient"), 0.5),
    **dict.fromkeys(("value_coefficient", "value_clip_range", "max_grad_norm"), 0.25),
    **{"batch_size": 8, "samples_per_prompt": 2, "max_new_tokens": 7, "minibatches": 4},
    **{"target_kl": 1.0, "kl_horizon": 5, "diagnostic_sequences": 3, "perturbation": 2.0**-24},
}
#: Settings that train nothing: a run may go on with others.
FREE = ("max_steps", "evaluation_sequences", "checkpoint_every")
#: Settings that mean something only with one another.
TOGETHER = {"importance_weights": "token", "importance_cap": 3.0}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(PPOSettings)])
def test_other_settings_are_refused_by_name(name: str, stopped: Path, completed: Path) -> None:
    """All but those that train nothing; a new setting has to be put on one of the lists."""
    assert (name in FREE) + (name in OTHER) + (name in TOGETHER) == 1
    if name in OTHER:
        was, now = getattr(settings(), name), OTHER[name]
        message = rf"settings\.{name} was {was} and is {now}"
        check_refused(
            stopped, f"state.safetensors belongs to another run: {message};", **{name: now}
        )
        check_refused(completed, f"summary.json belongs to another run: {message};", **{name: now})


def test_importance_weights_are_refused_in_a_run_without(stopped: Path) -> None:
    message = (
        r"importance_cap was None and is 3\.0; settings\.importance_weights was None and is 't"
    )
    check_refused(stopped, message, **TOGETHER)


def another_head() -> Pipeline:
    head = ValueHead(torch.zeros(32), torch.tensor(0.0))
    return dataclasses.replace(pipeline(), value_head=head)


@pytest.mark.parametrize("steps", [1, 4], ids=["nothing to do", "longer"])
@pytest.mark.parametrize(
    ("role", "models"),
    [
        ("policy", lambda: variant("policy", lambda m: m.lm_head.weight.mul_(2))),
        ("reference", lambda: variant("reference", lambda m: m.lm_head.weight.mul_(2))),
        ("reward", lambda: variant("reward", lambda m: m.score.weight.mul_(2))),
        ("value_head", another_head),
    ],
)
def test_another_model_is_refused(
    role: str, models: Callable[[], Pipeline], steps: int, stopped: Path, completed: Path
) -> None:
    for directory in (stopped, completed):
        check_refused(directory, rf"models\.{role} was .* and is", models=models(), max_steps=steps)


@pytest.mark.parametrize("name", ["fp32_bf16_kl", "all_fp32"])
def test_another_configuration_is_refused(name: str, stopped: Path, completed: Path) -> None:
    """Also one of another name with the same formats: its record would have two names."""
    for directory in (stopped, completed):
        message = rf"configuration\.name was 'fp32_baseline' and is '{name}'"
        check_refused(directory, message, name)


def test_another_torch_is_refused_where_there_is_something_to_do(
    stopped: Path, completed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    check_refused(stopped, r"torch was '.*' and is '9\.9\.9'")
    assert train(completed, resume=True, max_steps=1).status == "completed"


@pytest.mark.parametrize("begun_on", ["NVIDIA A100-SXM4-80GB", None])
def test_another_card_is_refused(
    begun_on: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the state does not say on which card it was made."""
    begun = {"device": "cuda"} | ({"card": begun_on} if begun_on else {})
    monkeypatch.setattr(state, "_place", lambda _: begun)
    train(tmp_path, stop_before=1)
    monkeypatch.setattr(state, "_place", lambda _: {"device": "cuda", "card": "NVIDIA H200"})
    check_refused(tmp_path, rf"card was {begun_on!r} and is 'NVIDIA H200'")
    monkeypatch.setattr(state, "_place", lambda _: begun)
    assert train(tmp_path, resume=True, max_steps=1).status == "completed"


def test_the_place_of_a_run_names_the_card_of_its_own_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    second = torch.device("cuda:1")
    assert state._place(second) == {"device": "cuda", "card": "card of cuda:1"}
    assert state._place(torch.device("cpu")) == {"device": "cpu"}, "as before: states go on"


def test_a_directory_that_holds_a_run_is_left_alone_without_resume(stopped: Path) -> None:
    for kept in ("state.safetensors", "steps.jsonl", "summary.json"):
        before = files_of(stopped)
        with pytest.raises(StateError, match="holds a PPO run already; continue it with --resume"):
            train(stopped)
        assert files_of(stopped) == before
        (stopped / kept).unlink()
    assert train(stopped).status == "completed", "a lock alone is no run"


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_bit_that_was_flipped_anywhere_in_the_state_is_noticed(stopped: Path) -> None:
    """Every fifth byte of the header, with the counters in it, and bytes of each tensor."""
    path = stopped / "state.safetensors"
    whole = path.read_bytes()
    wanted = identity(pipeline(), configuration("fp32_baseline"), settings())
    assert read_state(stopped, wanted) is not None
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, 5), *range(header, len(whole), 19973), len(whole) - 1]
    assert len(places) > 300
    for place in places:
        flipped(path, place)
        with pytest.raises(StateError, match=r"state\.safetensors"):
            read_state(stopped, wanted)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda n: n - 1, "is no whole state of a run"),
        (lambda n: n // 2, "is no whole state of a run"),
        (lambda n: 100, "is no whole state of a run"),
        (lambda n: 0, "is no whole state of a run"),
    ],
)
def test_a_state_that_was_cut_is_refused(
    keep: Callable[[int], int], message: str, stopped: Path
) -> None:
    path = stopped / "state.safetensors"
    path.write_bytes(path.read_bytes()[: keep(path.stat().st_size)])
    check_refused(stopped, message)


@pytest.mark.parametrize("schema", [None, "precision-forensics/ppo-state/1"])
def test_a_state_of_another_schema_is_refused(schema: str | None, stopped: Path) -> None:
    path = stopped / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | ({"schema": schema} if schema else {})
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if schema is None:
        metadata.pop("schema")
    save_file(tensors, path, metadata=metadata)
    check_refused(stopped, f"has schema {schema!r}, not '{SCHEMA}'")


def test_a_state_without_its_lines_or_lines_without_their_state_are_refused(stopped: Path) -> None:
    steps, state = stopped / "steps.jsonl", stopped / "state.safetensors"
    lines, kept = steps.read_text(), state.read_bytes()
    steps.write_text(lines.splitlines(keepends=True)[0])
    check_refused(stopped, r"steps.jsonl ends at step 0, the state is at 2: lines were removed")
    steps.unlink()
    check_refused(stopped, r"steps.jsonl ends at step -1, the state is at 2: lines were removed")
    steps.write_text(lines)
    state.unlink()
    check_refused(stopped, "has lines and there is no state: nobody knows of which run they are")
    state.write_bytes(kept)
    assert train(stopped, resume=True).status == "completed"


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[::-1],
        lambda lines: [lines[0], lines[0]],
        lambda lines: [lines[0], "[1, 2]"],
        lambda lines: [lines[0], '{"no": "step"}'],
        lambda lines: ["{", lines[1]],
        lambda lines: ["\udcff" + lines[0], lines[1]],
    ],
    ids=["order", "twice", "list", "no step", "half of the first", "no UTF-8"],
)
def test_lines_that_were_altered_are_refused(
    change: Callable[[list[str]], list[str]], stopped: Path
) -> None:
    path = stopped / "steps.jsonl"
    text = "\n".join(change(path.read_text().splitlines())) + "\n"
    path.write_bytes(text.encode(errors="surrogateescape"))
    check_refused(stopped, r"line [12] is not the line of step [01]: the file was altered")


def test_half_a_line_is_left_out(stopped: Path) -> None:
    with (stopped / "steps.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    assert [line["step"] for line in read_lines(stopped)] == [0, 1]
    assert train(stopped, resume=True).status == "completed"
    assert [line["step"] for line in step_lines(stopped)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read .*; delete it and resume"),
        ('{"schema": "another"}', "is not a summary of a PPO run"),
        ("[]", "is not a summary of a PPO run"),
    ],
)
def test_a_damaged_summary_is_refused(text: str, message: str, stopped: Path) -> None:
    (stopped / "summary.json").write_text(text)
    with pytest.raises(SummaryError, match=f"summary.json {message}"):
        train(stopped, resume=True)
    assert (stopped / "summary.json").read_text() == text


@pytest.mark.parametrize(
    ("change", "message"),
    [({"status": "fine"}, "has the unknown status 'fine'"), ({"more": 1}, "is not whole: .*more")],
)
def test_an_altered_summary_is_refused(change: dict[str, Any], message: str, stopped: Path) -> None:
    path = stopped / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SummaryError, match=message):
        train(stopped, resume=True)


def test_a_second_process_is_refused_while_the_first_one_lives(stopped: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from precision_lib.training.directory import alone\n"
        "with alone(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(stopped)]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        check_refused(stopped, "another process is training in .*; wait for it")
        other.kill()
    with alone(stopped):
        check_refused(stopped, "another process is training")
    assert train(stopped, resume=True).status == "completed"


def test_a_directory_that_cannot_be_written_to_is_noticed_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to"):
        train(tmp_path / "file" / "run")
