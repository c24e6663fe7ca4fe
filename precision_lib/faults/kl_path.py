"""Faults of the pipeline's KL path: log-softmax, shift, mean. All give finite, plausible numbers.

B sequences, L or T tokens, V vocabulary entries.
"""

import torch
from torch import Tensor


def log_of_softmax(logits: Tensor, tokens: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """log(softmax(z)): -inf where the probability underflows."""
    dtype = dtype or torch.float32
    inside = torch.promote_types(dtype, torch.float32)
    logprobs = torch.log(torch.softmax(logits.to(dtype), dim=-1, dtype=inside))
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).to(dtype)


def bf16_running_sum(x: Tensor, mask: Tensor) -> Tensor:
    """The sum is carried from micro-batch to micro-batch in bf16."""
    total = torch.zeros((), dtype=torch.bfloat16, device=x.device)
    real = torch.where(mask, x, torch.zeros_like(x)).to(torch.bfloat16).flatten()
    for part in torch.split(real, 64):  # micro-batches
        total = total + part.sum()
    return (total / mask.sum()).float()


def shift_off_by_one(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """logits[:, t] are paired with tokens[:, t], which they have seen."""
    return logits[:, :-1], tokens[:, :-1]
