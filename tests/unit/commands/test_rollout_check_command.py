"""``precision-forensics rollout-check`` as a user and a script meet it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from precision_lib import cli
from precision_lib.commands.rollout_check import _Lines
from precision_lib.mismatch.saving import save_dump
from precision_lib.models.loading import Checkpoint
from precision_lib.reporting.bar import every
from precision_lib.scoring.sampled import figures_of_tokens
from precision_lib.weights import manifest

Save = Callable[..., list[str]]


@pytest.fixture
def arguments(
    tiny_llama: Checkpoint, saved_checkpoint: Callable[[str], Path], tmp_path: Path
) -> Save:
    """The command's arguments for a dump of random tokens, with the model's own log-probs."""

    def save(name: str = "d.npz", **changes: Any) -> list[str]:
        tokens = torch.randint(1, 250, (16, 24), generator=torch.Generator().manual_seed(0))
        rows = figures_of_tokens(tiny_llama.model, list(tokens))
        logprobs = np.stack([f.logprobs[7:].numpy() for f in rows])
        path = tmp_path / name
        columns = {"token_ids": tokens.numpy(), "rollout_logprobs": logprobs}
        save_dump(path, {"rollout_dtype": "bf16"}, **columns | changes)
        return ["rollout-check", "--model", str(saved_checkpoint("Llama")), str(path)]

    return save


def test_the_models_own_numbers_need_no_more_than_a_sampler(
    arguments: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random tokens are not drawn from the model, and that is what the command says of them."""
    record, page = tmp_path / "r.json", tmp_path / "r.md"
    code = cli.main([*arguments(), f"--json={record}", f"--markdown={page}"])
    result = json.loads(record.read_text())
    assert (code, result["verdict"]) == (1, "semantics")
    assert result["fingerprints"]["pit"]["rejects"]
    assert set(result["scored"]) == {"fp32", "bf16"}
    assert len(result["model"]["sha256"]) == 64
    out, err = capsys.readouterr()
    assert "verdict: semantics (silent change of sampling)" in out
    assert "engine against bf16: sigma" in out
    assert "rollout-check: fp32, 0 of 384 tokens" in err
    assert "engine against bf16" in page.read_text()


def test_weights_that_differ_are_named_whatever_the_log_probs_say(
    arguments: Save, tmp_path: Path
) -> None:
    files = [str(tmp_path / f"{name}.json") for name in ("trainer", "engine", "record")]
    for scale, file in zip((1.0, 2.0), files[:2], strict=True):
        manifest({"layers.0.weight": scale * torch.ones(8, 8)}, file)
    given = [*arguments(), "--trainer-weights", files[0], "--json", files[2], "--engine-weights"]
    verdicts = []
    for engine in files[:2]:
        assert cli.main([*given, engine]) == 1
        verdicts.append(json.loads(Path(files[2]).read_text())["verdict"])
    assert verdicts == ["semantics", "delivery"]


def test_what_does_not_fit_is_exit_code_4_in_one_line(
    arguments: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments()
    model = tmp_path / "quantised"
    model.mkdir()
    (model / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    for changed, words in (
        ([*given[:2], str(tmp_path / "none"), given[3]], "there is no such directory"),
        ([*given[:2], str(model), given[3]], "its weights are quantised (fp8)"),
        ([*given[:3], str(tmp_path / "none.npz")], "No such file"),
        (
            arguments("other.npz", token_ids=9000 + np.arange(384).reshape(16, 24)),
            "holds the token 9023",
        ),
        (
            arguments("huge.npz", token_ids=1e300 * (1 + np.arange(384).reshape(16, 24))),
            "token ids that are no whole numbers",
        ),
        ([*given, "--json", str(tmp_path)], "is a directory"),
        ([*given, "--claim", "top_k=inf"], "give a whole number"),
        ([*given, "--claim", "dtype=bf16"], "give NAME=VALUE with one of"),
        ([*given, "--limit", "0"], "--limit 0"),
        ([*given, "--engine-weights", "e.json"], "needs --trainer-weights too"),
    ):
        assert cli.main(changed) == 4
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_a_line_comes_while_one_forward_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines()
    lines.show("fp32", 5, 10)
    with every(lines.write, seconds=0.01):
        for _ in range(500):
            if "5 of 10 tokens" in capsys.readouterr().err:
                break
            time.sleep(0.01)
        else:
            pytest.fail("no line in 5 s")


def test_the_weights_of_both_sides_are_compared(
    arguments: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, record = arguments(), tmp_path / "r.json"
    for name, factor in (("trainer", 1.0), ("engine", 1.5)):
        manifest({"layers.0.weight": factor * torch.ones(4, 4)}, tmp_path / f"{name}.json")
    trainer = ["--trainer-weights", str(tmp_path / "trainer.json")]
    both = [*trainer, "--engine-weights", str(tmp_path / "engine.json")]
    assert cli.main([*given, *both, f"--json={record}"]) == 1
    result = json.loads(record.read_text())
    assert (result["verdict"], result["cause"]) == ("delivery", "the weights differ")
    assert result["weights"]["findings"][0]["tensor"] == "layers.0.weight"
    capsys.readouterr()
    for wrong, words in (
        (trainer, "needs --engine-weights"),
        ([*trainer, "--engine-weights", "none"], "does not exist"),
    ):
        assert cli.main([*given, *wrong]) == 4
        assert words in capsys.readouterr().err
