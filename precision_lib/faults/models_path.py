"""Faults between the checkpoint and a score: how models are cast, which weights, which state."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.faults.arguments import Arguments, fault_of
from precision_lib.formats import get_format
from precision_lib.models.loading import set_parameters
from precision_lib.models.reward_model import score_tokens
from precision_lib.models.value_head import predict_values
from precision_lib.scoring.forward import trunk
from precision_lib.trajectories.store import response_mask


@dataclass(frozen=True)
class Parameters(Arguments[None]):
    """The arguments of :func:`set_parameters`."""

    working: Any
    reference: Any
    fmt: str
    direction: dict[str, Tensor] | None = None
    scale: float = 0.0
    original = staticmethod(set_parameters)


@fault_of(Parameters)
def reference_in_bf16(x: Parameters) -> None:
    """The model that is not trained is loaded in bf16 whatever was asked for."""
    x.right(fmt="bf16" if x.direction is None else x.fmt)


@fault_of(Parameters)
def stale_reference(x: Parameters) -> None:
    """The reference is of another step: one of its tensors has moved by 2**-6 of itself."""
    x.right()
    if x.direction is None:
        next(iter(x.working.parameters())).data.mul_(1 + 2.0**-6)


@fault_of(Parameters)
def rope_table_in_format(x: Parameters) -> None:
    """``model.to(dtype)``: the RoPE table is rounded too, 0.18 rad at position 1,024 in bf16."""
    x.right()
    for buffer in x.working.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(get_format(x.fmt).dtype).to(buffer.dtype)


@fault_of(Parameters)
def dropout_left_on(x: Parameters) -> None:
    """Nobody called ``eval()``, and the checkpoint was trained with attention dropout."""
    x.right()
    for module in x.working.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    x.working.train()


def value_head_in_bf16(hidden: Tensor, weight: Tensor, bias: Tensor, fmt: str) -> Tensor:
    """The head computes in bf16 and hands out the format that was asked for."""
    return predict_values(hidden, weight, bias, "bf16").to(get_format(fmt).dtype)


def states_one_late(model: Any, tokens: Tensor) -> Tensor:
    """The critic reads the state behind the token that it judges."""
    return trunk(model, tokens).roll(-1, dims=1)


def scores_through_bf16(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Scores are stored in bf16 on their way, and widened again."""
    scores = score_tokens(model, tokens, lengths)
    return scores.to(torch.bfloat16).to(scores.dtype)


def mask_one_early(prompt_lengths: Tensor, response_lengths: Tensor, length: int) -> Tensor:
    """The mask of the tokens themselves, not of the tokens that are predicted: one slot early."""
    return response_mask(prompt_lengths - 1, response_lengths, length)
