"""Tiny checkpoints of Llama, Qwen3 and a mixture of experts, and their engine layouts.

A state is a dictionary of names and tensors, as a user would save it.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from precision_lib.runtime import deterministic

State = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {"tie_word_embeddings": True},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


@functools.cache
def model(name: str, seed: int = 0) -> Any:
    """A random model, every tensor with values of its own, norms too."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**SIZES | MODELS[name])
    with deterministic(seed):
        made = getattr(transformers, f"{name}ForCausalLM")(config)
        for parameter in made.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return made.eval()


@functools.cache
def _exported(name: str, seed: int, folder: Path) -> State:
    from safetensors.torch import load_file

    model(name, seed).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def exported(name: str, tmp: Path, seed: int = 0) -> State:
    """The state that ``save_pretrained`` writes, experts one by one, a tied head left out."""
    return dict(_exported(name, seed, tmp / f"exported_{name}_{seed}"))


def save(path: Path, state: Mapping[str, Tensor], name: str = "", **extra: Any) -> Path:
    """A checkpoint directory of ``state``; with ``name`` a config.json beside it."""
    path.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone().contiguous() for k, v in state.items()}, path / "model.safetensors")
    if name:
        config = model(name).config.to_dict() | extra
        (path / "config.json").write_text(json.dumps(config, default=str))
    return path


def cast(state: Mapping[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> State:
    """All tensors in ``dtype``."""
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def as_vllm(state: Mapping[str, Tensor]) -> State:
    """vLLM's layout: q, k, v joined; gate and up joined; experts stacked as w13 and w2."""
    fused: State = {}
    for name, tensor in state.items():
        if name.endswith("q_proj.weight"):
            parts = [state[name.replace("q_proj", x)] for x in ("q_proj", "k_proj", "v_proj")]
            fused[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif ".experts." in name:
            owner = name.split(".experts.")[0] + ".experts"
            if f"{owner}.w13_weight" not in fused:
                fused |= _stacked(state, owner)
        elif name.endswith("gate_proj.weight"):
            parts = [tensor, state[name.replace("gate_proj", "up_proj")]]
            fused[name.replace("gate_proj", "gate_up_proj")] = torch.cat(parts)
        elif not name.endswith(("k_proj.weight", "v_proj.weight", "up_proj.weight")):
            fused[name] = tensor
    return fused


def _stacked(state: Mapping[str, Tensor], owner: str) -> State:
    count = sum(n.startswith(f"{owner}.") and n.endswith("down_proj.weight") for n in state)
    one = [
        {part: state[f"{owner}.{e}.{part}_proj.weight"] for part in ("gate", "up", "down")}
        for e in range(count)
    ]
    return {
        f"{owner}.w13_weight": torch.stack([torch.cat([x["gate"], x["up"]]) for x in one]),
        f"{owner}.w2_weight": torch.stack([x["down"] for x in one]),
    }


def quantised(weight: Tensor, block: int = 128) -> tuple[Tensor, Tensor]:
    """E4M3 codes and FP32 scales of 128 x 128 blocks, by torch alone; a zero block has scale 1."""
    rows, columns = weight.shape
    down, across = -(-rows // block), -(-columns // block)
    padded = torch.zeros(down * block, across * block)
    padded[:rows, :columns] = weight.float()
    blocks = padded.view(down, block, across, block)
    size = blocks.abs().amax(dim=(1, 3))
    scale = torch.where(size == 0, torch.ones_like(size), size / 448.0)
    codes = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
    return codes.to(torch.float8_e4m3fn), scale


def quantised_state(state: Mapping[str, Tensor]) -> State:
    """Projections in E4M3 with ``weight_scale_inv`` beside them, the rest in bf16."""
    made: State = {}
    for name, tensor in state.items():
        if name.endswith("proj.weight"):
            made[name], made[f"{name}_scale_inv"] = quantised(tensor)
        else:
            made[name] = tensor.bfloat16()
    return made
