"""Checkpoints of several architectures load by one path; a cast is what loading with dtype does."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib.models.embedded import REWARD_DIR
from precision_lib.models.loading import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    parameter_digest,
    resolve_device,
    set_parameters,
    working_copy,
)
from precision_lib.runtime import deterministic

ARCHITECTURES = ("GPT2", "Llama", "Qwen2", "Qwen3")
TOKENS = torch.arange(1, 41).view(2, 20)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad(), deterministic():
        out: torch.Tensor = model(input_ids=TOKENS).logits
    return out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_checkpoint_loads_in_fp32_with_eager_attention(
    architecture: str, saved_checkpoint: Callable[[str], Path]
) -> None:
    checkpoint = load_checkpoint(str(saved_checkpoint(architecture)))
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}
    assert checkpoint.model.config._attn_implementation == "eager"
    assert not checkpoint.model.training
    assert checkpoint.start_token == 0
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("def f():")) == "def f():"


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cast_equals_loading_in_that_dtype_bit_for_bit(
    architecture: str, fmt: str, saved_checkpoint: Callable[[str], Path]
) -> None:
    from transformers import AutoModelForCausalLM

    directory = saved_checkpoint(architecture)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[fmt]
    with deterministic():
        loaded = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager"
        )
    reference = load_checkpoint(str(directory)).model
    working = working_copy(reference)
    set_parameters(working, reference, fmt)
    assert torch.equal(logits(working), logits(loaded.eval()))


def test_a_cast_leaves_the_rope_table_alone_and_to_does_not(tiny_llama: Checkpoint) -> None:
    """The planted alternative, ``model.to(bfloat16)``, rounds inv_freq."""
    reference = tiny_llama.model
    cast, rounded = working_copy(reference), working_copy(reference).to(torch.bfloat16)
    set_parameters(cast, reference, "bf16")
    tables = [m.model.rotary_emb.inv_freq for m in (reference, cast, rounded)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2].float())


def test_parameters_move_along_a_direction_and_come_back(tiny_llama: Checkpoint) -> None:
    reference = tiny_llama.model
    before = parameter_digest(reference)
    working = working_copy(reference)
    direction = {name: torch.ones_like(p) for name, p in reference.named_parameters()}
    set_parameters(working, reference, "fp32", direction, 0.5)
    for (_, moved), (_, original) in zip(
        working.named_parameters(), reference.named_parameters(), strict=True
    ):
        assert torch.equal(moved, original + 0.5)
    set_parameters(working, reference, "fp64")
    set_parameters(working, reference, "fp32")
    assert torch.equal(logits(working), logits(reference))
    assert parameter_digest(working) == parameter_digest(reference) == before


def test_the_digest_sees_one_bit(tiny_llama: Checkpoint) -> None:
    other = working_copy(tiny_llama.model)
    parameter = next(iter(other.parameters()))
    parameter.data.view(-1)[0] = torch.nextafter(parameter.data.view(-1)[0], torch.tensor(9.0))
    assert parameter_digest(other) != tiny_llama.sha256


def test_a_checkpoint_saved_in_bf16_is_widened(
    tmp_path: Path, saved_checkpoint: Callable[[str], Path]
) -> None:
    checkpoint = load_checkpoint(str(saved_checkpoint("Llama")))
    checkpoint.model.to(torch.bfloat16).save_pretrained(tmp_path)
    checkpoint.tokenizer.save_pretrained(tmp_path)
    again = load_checkpoint(str(tmp_path))
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config.json; give a directory that"):
        load_checkpoint(str(tmp_path))


def test_quantised_weights_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(CheckpointError, match=r"quantised \(gptq\).* the original checkpoint"):
        load_checkpoint(str(tmp_path))


def test_a_truncated_checkpoint_is_named(
    tmp_path: Path, saved_checkpoint: Callable[[str], Path]
) -> None:
    for file in saved_checkpoint("Llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cannot load .* model.safetensors .* whole"):
        load_checkpoint(str(tmp_path))


def test_a_checkpoint_without_a_tokenizer_is_named(
    tmp_path: Path, saved_checkpoint: Callable[[str], Path]
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved_checkpoint("Llama") / name).read_bytes())
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_checkpoint(str(tmp_path))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="unknown device 'gpu'; use 'cpu' or 'cuda'"):
        resolve_device("gpu")
    with pytest.raises(RuntimeError, match="no CUDA device"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda").type == "cuda"


def test_a_loaded_model_does_not_change_with_its_file(
    tmp_path: Path, saved_checkpoint: Callable[[str], Path]
) -> None:
    """safetensors maps its file; writing over a checkpoint must not change a running model."""
    directory = tmp_path / "model"
    shutil.copytree(saved_checkpoint("Llama"), directory)
    loaded = load_checkpoint(str(directory))
    weights = directory / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes(1024))
    assert parameter_digest(loaded.model) == loaded.sha256


def test_a_checkpoint_without_its_lm_head_is_no_language_model() -> None:
    """A reward model loads as one, with random numbers where its LM head should be."""
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight, which would be random"):
        load_checkpoint(str(REWARD_DIR))
