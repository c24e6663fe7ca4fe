"""Faults between the checkpoint and a score: how models are cast, which weights, which state.

The hazard. A model in the wrong format, of the wrong step or with its dropout on computes plausible
numbers, and nothing in the numbers says so.
"""

from typing import Any

import torch
from torch import Tensor

from precision_lib.formats import get_format
from precision_lib.models import loading, reward_model, value_head
from precision_lib.trajectories import store, teacher_forcing

# The originals, taken before anything is planted.
_set_parameters = loading.set_parameters
_predict_values = value_head.predict_values
_score_tokens = reward_model.score_tokens
_trunk = teacher_forcing.trunk
_response_mask = store.response_mask


def reference_in_bf16(
    working: Any,
    reference: Any,
    fmt: str,
    direction: dict[str, Tensor] | None = None,
    scale: float = 0.0,
) -> None:
    """The model that is not trained is loaded in bf16 whatever was asked for."""
    _set_parameters(working, reference, "bf16" if direction is None else fmt, direction, scale)


def stale_reference(
    working: Any,
    reference: Any,
    fmt: str,
    direction: dict[str, Tensor] | None = None,
    scale: float = 0.0,
) -> None:
    """The reference is of another step: one of its tensors has moved by 2**-6 of itself."""
    _set_parameters(working, reference, fmt, direction, scale)
    if direction is None:
        next(iter(working.parameters())).data.mul_(1 + 2.0**-6)


def rope_table_in_format(
    working: Any,
    reference: Any,
    fmt: str,
    direction: dict[str, Tensor] | None = None,
    scale: float = 0.0,
) -> None:
    """``model.to(dtype)``: the RoPE table is rounded too, 0.18 rad at position 1,024 in bf16."""
    _set_parameters(working, reference, fmt, direction, scale)
    for buffer in working.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(get_format(fmt).dtype).to(buffer.dtype)


def dropout_left_on(
    working: Any,
    reference: Any,
    fmt: str,
    direction: dict[str, Tensor] | None = None,
    scale: float = 0.0,
) -> None:
    """Nobody called ``eval()``, and the checkpoint was trained with attention dropout."""
    _set_parameters(working, reference, fmt, direction, scale)
    for module in working.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    working.train()


def value_head_in_bf16(hidden: Tensor, weight: Tensor, bias: Tensor, fmt: str) -> Tensor:
    """The head computes in bf16 and hands out the format that was asked for."""
    return _predict_values(hidden, weight, bias, "bf16").to(get_format(fmt).dtype)


def states_one_late(model: Any, tokens: Tensor) -> Tensor:
    """The critic reads the state behind the token that it judges."""
    return _trunk(model, tokens).roll(-1, dims=1)


def scores_through_bf16(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Scores are stored in bf16 on their way, and widened again."""
    scores = _score_tokens(model, tokens, lengths)
    return scores.to(torch.bfloat16).to(scores.dtype)


def mask_one_early(prompt_lengths: Tensor, response_lengths: Tensor, length: int) -> Tensor:
    """The mask of the tokens themselves, not of the tokens that are predicted: one slot early."""
    return _response_mask(prompt_lengths - 1, response_lengths, length)
