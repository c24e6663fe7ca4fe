"""Inputs that broke a real framework, or a core of this project while it was written.

They are run against every target, because random draws do not find them again.
"""

import math
from dataclasses import dataclass

import torch

from precision_lib.conformance.inputs import Inputs


@dataclass(frozen=True)
class Pinned:
    """One input: what went wrong with it (``meaning``) and where that was reported (``link``)."""

    name: str
    function: str
    inputs: Inputs
    meaning: str
    link: str


def _bf16(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bfloat16)


def _fp32(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


_LOSS = Inputs(
    {
        "logprobs": _fp32([-1.0, -1.0]),
        "old_logprobs": _fp32([-1.0, -1.0]),
        "advantages": _fp32([1.0, 1.0]),
        "mask": torch.ones(1, 2, dtype=torch.bool),
    },
    {"clip_range": 0.2},
)


PINNED = (
    Pinned(
        "group_statistics_in_bf16",
        "group_advantages",
        Inputs({"rewards": _bf16([1.0, 1.0, 1.0, 1.0078125])}),
        "mean and std in the rewards' format: [0, 0, 0, 2] instead of [-.5, -.5, -.5, 1.5]",
        "https://github.com/OpenRLHF/OpenRLHF/pull/1334",
    ),
    Pinned(
        "equal_rewards_in_a_one_pass_variance",
        "group_advantages",
        Inputs({"rewards": _fp32([0.95] * 7)}),
        "E[r^2] - E[r]^2 leaves a std that is rounding noise, and an advantage of -2075",
        "https://github.com/NVIDIA-NeMo/RL/pull/4158",
    ),
    Pinned(
        "minus_infinite_logit",
        "entropy",
        Inputs({"logits": _fp32([0.0, 1.0, -math.inf])[None]}),
        "0 * -inf = NaN",
        "https://github.com/huggingface/trl/issues/7221",
    ),
    Pinned(
        "fp16_logits_65504_apart",
        "entropy",
        Inputs({"logits": torch.tensor([[[65504.0, -65504.0]]], dtype=torch.float16)}),
        "the difference overflows fp16 and becomes a -inf log-prob",
        "https://github.com/huggingface/trl/issues/7221",
    ),
    Pinned(
        "log_ratio_of_minus_100",
        "kl_penalty",
        Inputs(
            {
                "policy_logprobs": _fp32([-100.0, -1.0]),
                "ref_logprobs": _fp32([-1e-3, -1.0]),
            },
            {"estimator": "k3"},
        ),
        "k3 overflows; clamped after the exp its gradient is NaN",
        "https://github.com/OpenRLHF/OpenRLHF/pull/1335",
    ),
    Pinned(
        "log_ratio_near_zero",
        "kl_penalty",
        Inputs(
            {
                "policy_logprobs": _fp32([-1e-6, -2.0, -2.0001]),
                "ref_logprobs": _fp32([0.0, -2.0001, -2.0]),
            },
            {"estimator": "k3"},
        ),
        "exp(-d) - 1 + d cancels: -6e-8 instead of 5e-13, half the value lost at 1e-4",
        "https://github.com/google/tunix/issues/2315",
    ),
    Pinned(
        "log_ratio_of_100_with_a_positive_advantage",
        "policy_loss",
        _LOSS | {"old_logprobs": _fp32([-101.0, -1.0])},
        "the loss is clipped and finite, its gradient 0 * inf = NaN",
        "https://github.com/OpenRLHF/OpenRLHF/pull/1335",
    ),
    Pinned(
        "nan_in_a_padded_slot",
        "masked_mean",
        Inputs({"x": _fp32([1.0, 2.0, math.nan]), "mask": torch.tensor([[True, True, False]])}),
        "NaN * 0 = NaN",
        "https://github.com/volcengine/verl/pull/2377",
    ),
    Pinned(
        "log_ratio_of_100_with_no_advantage",
        "policy_loss",
        _LOSS | {"old_logprobs": _fp32([-101.0, -1.0]), "advantages": _fp32([0.0, 1.0])},
        "an advantage of 0 times an infinite ratio is NaN",
        "https://github.com/radixark/miles/pull/1363",
    ),
)
