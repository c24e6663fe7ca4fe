"""TRL: its log-probs and entropy from logits, its fused LM head, and the loss of its GRPO trainer.

Its trainers of group advantages, KL and masking have no functions of their own: these stand inside
``GRPOTrainer``, and PPO with its value loss and GAE left TRL in 1.13. ``_compute_loss`` is called
with a stand-in for the trainer that hands over the log-probs. ``loss_type="bnpo"`` is the mean over
real tokens, ``"dapo"`` the sum over ``num_items_in_batch``, which the trainer counts, and
``"grpo"`` at the level of sequences is GSPO. Its CISPO has an upper bound alone. Its ``delta``
bounds the ratio of harmful tokens where it lies above the clip. GRPO, RLOO and DPO take their
log-probs from ``ChunkedLogProbFunction`` over hidden states; ``selective_log_softmax`` serves TRL's
experimental trainers.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from precision_lib.targets.frameworks import framework

FRAMEWORK = framework("trl")
_trl = FRAMEWORK.function
ONLY = {
    "cispo_loss": {"clip_low": (1.0,)},
    "dapo_loss": {"dual_clip": (None, 10.0)},
}


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Any:
    return _trl("selective_log_softmax")(logits, tokens, temperature)


def entropy(logits: Tensor) -> Any:
    return _trl("entropy_from_logits")(logits)


def linear_token_logprobs(
    hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float
) -> Any:
    rows, chunk = hidden.reshape(-1, hidden.shape[-1]), _trl("_CHUNKED_LOGPROB_CHUNK_SIZE")
    fused = _trl("_ChunkedLogProbFunction").apply
    logprobs, *_ = fused(rows, weight, None, tokens.reshape(-1), temperature, chunk, None, 1.0, ())
    return logprobs.view(tokens.shape)


def policy_loss(clip_range: float, **batch: Any) -> Any:
    return _loss("bnpo", clip_low=clip_range, clip_high=clip_range, **batch)


def dapo_loss(denominator: float | None = None, **given: Any) -> Any:
    return _loss("dapo", denominator=denominator, **given)


def cispo_loss(clip_high: float, **given: Any) -> Any:
    return _loss("cispo", clip_high=1 + clip_high, **given)


def gspo_loss(**given: Any) -> Any:
    return _loss("grpo", level="sequence", **given)


def _loss(
    loss_type: str,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    denominator: float | None = None,
    **options: Any,
) -> Any:
    ids = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
    count = mask.sum() if denominator is None else torch.tensor(denominator, device=mask.device)
    inputs = {
        "prompt_ids": ids[:, :0],
        "prompt_mask": ids[:, :0],
        "completion_ids": ids,
        "completion_mask": mask.to(torch.int64),
        "advantages": advantages,
        "old_per_token_logps": old_logprobs,
        "num_items_in_batch": count,
    }
    trainer = _stand_in(logprobs, loss_type, **options)
    return _trl("GRPOTrainer")._compute_loss(trainer, None, inputs)


def _stand_in(
    logprobs: Tensor,
    loss_type: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    level: str = "token",
) -> Any:
    """What ``GRPOTrainer._compute_loss`` reads of its trainer, all other options switched off."""
    zeros = torch.zeros_like(logprobs)
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, zeros, None),
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=0.0,
        loss_type=loss_type,
        epsilon_low=clip_low,
        epsilon_high=clip_high,
        args=SimpleNamespace(delta=dual_clip, use_bias_correction_kl=False),
        use_vllm=False,
        model=SimpleNamespace(training=False),
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(
            gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
        ),
        _metrics={"eval": defaultdict(list)},
    )
