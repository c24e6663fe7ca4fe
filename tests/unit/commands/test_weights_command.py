"""``precision-forensics weights``: exit codes, the JSON, the screen; wrong usage in one line."""

import json
from pathlib import Path

import pytest
import torch

from precision_lib.cli import main
from tests.unit.weights.checkpoints import save

RANK_A = b"""{"schema": "precision-forensics/weights/1", "config": {}, "adapter": {}, "step": 1,
"rank": "a", "tensors": {}}"""
WEIGHT = "model.layers.0.mlp.down_proj.weight"


def state(factor: float = 1.0) -> dict[str, torch.Tensor]:
    values = torch.linspace(-1, 1, 64).reshape(8, 8)
    return {WEIGHT: factor * values, "model.norm.weight": torch.linspace(1, 2, 8)}


def run(*arguments: object) -> int:
    return main(["weights", *map(str, arguments)])


def test_equal_is_0_different_is_1_cannot_say_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = save(tmp_path / "trainer", state())
    assert run(trainer, save(tmp_path / "same", state())) == 0
    assert "weights: equal, 2 tensors, 72 elements" in capsys.readouterr().out
    file = tmp_path / "answer.json"
    assert run(trainer, save(tmp_path / "scaled", state(3.0)), "--json", file) == 1
    assert "scaled: 1 tensor" in capsys.readouterr().out
    [finding] = json.loads(file.read_text())["findings"]
    assert (finding["kind"], finding["tensor"], finding["exact"]) == ("scaled", WEIGHT, True)
    others = {f"{name}.foreign": tensor for name, tensor in state().items()}
    assert run(trainer, save(tmp_path / "foreign", others), "--json", file) == 2
    assert json.loads(file.read_text())["verdict"] == "cannot say"
    assert "no name is shared" in capsys.readouterr().out


def test_a_manifest_stands_for_its_checkpoint(tmp_path: Path) -> None:
    trainer, manifest = save(tmp_path / "trainer", state()), tmp_path / "m.json"
    assert run(trainer, "--write-manifest", manifest) == 0
    assert run(manifest, trainer) == 0
    assert run(manifest, save(tmp_path / "scaled", state(3.0))) == 1
    other = tmp_path / "n.json"
    assert run(manifest, trainer, "--write-manifest", other) == 4


def test_older_weights_and_the_learning_rate_are_controls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, older = save(tmp_path / "trainer", state()), save(tmp_path / "older", state(1.5))
    assert run(trainer, trainer, "--older", older) == 0
    assert "changed 16-bit codes, " in capsys.readouterr().out
    assert run(trainer, trainer, "--older", older, "--learning-rate", 0) == 1
    assert f"moved: 1 tensor, it moved in a step that should move nothing\n  {WEIGHT}" in (
        capsys.readouterr().out
    )
    assert run(trainer, trainer, "--older", older, "--learning-rate", 1e-6) == 1
    assert "model.norm.weight: it did not change at learning rate 1e-06" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pytorch_model.bin", b"", "may hold pickle, which runs code"),
        ("model.safetensors", b"\x10", "is no safetensors file, or is cut off"),
        ("model.safetensors", b"\x04\0\0\0\0\0\0\0[{}]", "has a broken header"),
        ("manifest.json", b'{"schema": 1}', "is no record of weights"),
        ("ranks.json", RANK_A, "rank is 'a', no whole number"),
        ("weights.npz", b"", "is no safetensors file and no manifest"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    name: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert run(save(tmp_path / "trainer", state()), tmp_path / name) == 4
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert name in line


def test_a_directory_of_pickles_and_a_missing_shard_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = save(tmp_path / "trainer", state())
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    (pickles / "pytorch_model.bin").write_bytes(b"")
    assert run(trainer, pickles) == 4
    assert "pytorch_model.bin" in capsys.readouterr().err
    index = {"weight_map": {WEIGHT: "model-1.safetensors"}}
    (trainer / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run(trainer, trainer) == 4
    assert "lists model-1.safetensors, which is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give ENGINE to compare with, or --write-manifest FILE"),
        (["ENGINE", "--learning-rate", "0"], "--learning-rate needs --older FILE"),
        (["absent"], "does not exist"),
        (["ENGINE", "--older", "ENGINE", "--learning-rate", "nan"], "--learning-rate nan"),
        (["ENGINE", "--lora-scale", "inf"], "--lora-scale inf: give a number"),
        (["--write-manifest", "ENGINE"], "is a directory"),
    ],
)
def test_wrong_usage_is_4(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = save(tmp_path / "trainer", state())
    assert run(trainer, *(str(trainer) if a == "ENGINE" else a for a in arguments)) == 4
    assert message in capsys.readouterr().err
