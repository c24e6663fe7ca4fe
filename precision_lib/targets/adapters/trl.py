"""TRL: its log-probs and entropy from logits, and the loss of its GRPO trainer.

Its trainers of group advantages, KL and masking have no functions of their own: these stand inside
``GRPOTrainer``, and PPO with its value loss and GAE left TRL in 1.13. ``_compute_loss`` is called
with a stand-in for the trainer that hands over the log-probs; ``loss_type="bnpo"`` is the mean over
real tokens. GRPO, RLOO and DPO take their log-probs from a kernel over hidden states (FP32 inside),
which logits do not reach; ``selective_log_softmax`` serves TRL's experimental trainers.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from precision_lib.targets.frameworks import framework, load

FRAMEWORK = framework("trl")


def token_logprobs(logits: Tensor, tokens: Tensor) -> Any:
    return load(FRAMEWORK)["selective_log_softmax"](logits, tokens)


def entropy(logits: Tensor) -> Any:
    return load(FRAMEWORK)["entropy_from_logits"](logits)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> Any:
    ids = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
    inputs = {
        "prompt_ids": ids[:, :0],
        "prompt_mask": ids[:, :0],
        "completion_ids": ids,
        "completion_mask": mask.to(torch.int64),
        "advantages": advantages,
        "old_per_token_logps": old_logprobs,
    }
    trainer = load(FRAMEWORK)["GRPOTrainer"]
    return trainer._compute_loss(stand_in(logprobs, clip_range), None, inputs)


def stand_in(logprobs: Tensor, clip_range: float, beta: float = 0.0) -> Any:
    """What ``GRPOTrainer._compute_loss`` reads of its trainer, all options switched off."""
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            logprobs,
            torch.zeros_like(logprobs),
            None,
        ),
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type="bnpo",
        epsilon_low=clip_range,
        epsilon_high=clip_range,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        use_vllm=False,
        model=SimpleNamespace(training=False),
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"eval": defaultdict(list)},
    )
