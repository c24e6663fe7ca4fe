"""Liger-Kernel: its chunked losses, which are plain torch and run on any device.

Its Triton kernels (fused linear cross entropy, JSD, GRPO over logits) need a GPU, and are not
called. ``chunk_forward`` makes log-probs from hidden states; the losses are the functions that its
fused classes call on them, uncompiled. A loss that takes one advantage a sequence is given tokens
as sequences of one token where the interface has an advantage a token. ``"bnpo"`` is the mean over
real tokens, ``"dapo"`` the sum over ``num_items_in_batch``, ``"grpo"`` at the level of sequences
is GSPO. Its CISPO has an upper bound alone. Its ``delta`` bounds the ratio of harmful tokens where
it lies above the clip. ``distillation_loss_fn`` adds up its rows and is mapped over them.
"""

from typing import Any

import torch
from torch import Tensor

from precision_lib.targets.frameworks import framework

FRAMEWORK = framework("liger")
_liger = FRAMEWORK.function
ONLY = {
    "kl_penalty": {"estimator": ("k3",)},
    "cispo_loss": {"clip_low": (1.0,)},
    "dapo_loss": {"dual_clip": (None, 10.0)},
}


def linear_token_logprobs(
    hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float
) -> Any:
    fused = _liger("LigerFusedLinearPPOBase").chunk_forward
    return fused(hidden, weight, tokens, temperature=temperature)


def kl_penalty(policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Any:
    return _liger("k3_loss_fn")(ref_logprobs, policy_logprobs)


def policy_loss(clip_range: float, **batch: Tensor) -> Any:
    return _by_token("bnpo", clip_low=clip_range, clip_high=clip_range, **batch)


def dapo_loss(dual_clip: float | None, denominator: float | None = None, **given: Any) -> Any:
    return _by_token("dapo", delta=dual_clip, num_items_in_batch=denominator, **given)


def cispo_loss(clip_high: float, **given: Any) -> Any:
    return _by_token("cispo", clip_high=1 + clip_high, **given)


def gspo_loss(**given: Any) -> Any:
    return _loss("grpo", importance_sampling_level="sequence", **given)


def _by_token(loss_type: str, advantages: Tensor, **given: Any) -> Any:
    """The loss of [B, T] advantages, each token as a sequence of its own."""
    tensors = ("logprobs", "old_logprobs", "mask")
    columns = {name: given.pop(name).reshape(-1, 1) for name in tensors}
    return _loss(loss_type, advantages=advantages.reshape(-1), **columns, **given)


def _loss(
    loss_type: str,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    **options: Any,
) -> Any:
    ints = mask.to(torch.int64)
    loss, _ = _liger("LigerFusedLinearPPOBase")._compute_loss_from_logps(
        logprobs,
        ints,
        advantages,
        old_per_token_logps_chunk=old_logprobs,
        full_attention_mask=ints,
        epsilon_low=clip_low,
        epsilon_high=clip_high,
        beta=0.0,
        loss_type=loss_type,
        ppo_loss_fn=_liger("LigerFusedLinearGRPOFunction").ppo_loss_fn,
        **options,
    )
    return loss


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
) -> Any:
    loss = _liger("LigerFusedLinearDPOFunction").preference_loss_fn
    both = torch.cat([policy_chosen, policy_rejected])  # read for its length
    return loss(policy_chosen, policy_rejected, both, ref_chosen, ref_rejected, beta)[0]


def jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float) -> Any:
    row = _liger("LigerFusedLinearJSDFunction").distillation_loss_fn
    rows = torch.vmap(torch.vmap(lambda student, teacher: row(student, teacher, beta)))
    return rows(student_logits, teacher_logits)
