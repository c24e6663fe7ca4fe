"""Rollout engines of every format, emulated on a real model: the log-probs that each reports.

The weights and inputs of every linear layer are rounded as the format's kernels round them; sums
are in FP32, and results are in bf16. N responses of T tokens.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from precision_lib.models.loading import set_parameters
from precision_lib.runtime import deterministic

#: Elements that share a scale in FP8: a block of a weight, a group of a token's channels.
BLOCK = 128
E4M3_LARGEST = 448.0


def engine(model: Any, fmt: str) -> Any:
    """A copy of the FP32 ``model`` that computes as an engine of ``fmt`` does.

    Args:
        fmt: fp32, fp16, bf16, ``fp8`` (weights and activations), ``int8`` (likewise) or
            ``fp8 KV cache`` (bf16 with keys and values in E4M3, scale 1).
    """
    twin = copy.deepcopy(model)
    base = fmt if fmt in ("fp32", "fp16", "bf16") else "bf16"
    for name, module in list(twin.named_modules()):
        if not isinstance(module, nn.Linear) or name.endswith("lm_head"):
            continue
        if fmt in ("fp8", "int8"):
            weight, inputs = _QUANTISED[fmt]
            module.weight.data = weight(module.weight.data)
            module.register_forward_pre_hook(
                lambda _, x, f=inputs: (f(x[0].float()).to(x[0].dtype),)
            )
        if fmt == "fp8 KV cache" and name.split(".")[-1] in ("k_proj", "v_proj"):
            module.register_forward_hook(lambda _, __, out: _e4m3(out.float()).to(out.dtype))
    set_parameters(twin, twin, base)
    return twin


def _e4m3(x: Tensor) -> Tensor:
    return x.clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn).float()


def _fp8_groups(x: Tensor) -> Tensor:
    """One scale a token and 128 channels; a group of zeros has scale 1."""
    return torch.cat([_scaled(part) for part in x.split(BLOCK, -1)], -1)


def _scaled(x: Tensor) -> Tensor:
    largest = x.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / E4M3_LARGEST, torch.ones_like(largest))
    return _e4m3(x / scale) * scale


def _fp8_blocks(weight: Tensor) -> Tensor:
    """One scale a block of 128 x 128."""
    rows = []
    for band in weight.split(BLOCK, 0):
        parts = [_scaled(p.reshape(1, -1)).reshape(p.shape) for p in band.split(BLOCK, 1)]
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows)


def _int8_rows(x: Tensor) -> Tensor:
    """One scale a row: an output channel of a weight, a token of an activation."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / scale).round() * scale


_QUANTISED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "fp8": (_fp8_blocks, _fp8_groups),
    "int8": (_int8_rows, _int8_rows),
}


@torch.no_grad()
def token_logprobs(
    model: Any, prompts: list[list[int]], responses: Tensor, *, rows: int, native: bool = False
) -> Tensor:
    """[N, T] FP32 log-probs of the responses, in micro-batches of ``rows``.

    Args:
        native: the products of torch's own 16-bit kernels instead of FP32 sums rounded once.
    """
    parts = []
    with deterministic(native_products=native):
        for start in range(0, len(responses), rows):
            batch = range(start, min(start + rows, len(responses)))
            width = max(len(prompts[i]) for i in batch) + responses.shape[1]
            tokens = torch.zeros(len(batch), width, dtype=torch.int64)
            for at, i in enumerate(batch):
                row = torch.cat([torch.tensor(prompts[i]), responses[i]])
                tokens[at, : len(row)] = row
            logits = model(input_ids=tokens).logits
            for at, i in enumerate(batch):
                first = len(prompts[i]) - 1
                logs = logits[at, first : first + responses.shape[1]].float().log_softmax(-1)
                parts.append(logs.gather(-1, responses[i].unsqueeze(-1)).squeeze(-1))
    return torch.stack(parts)
