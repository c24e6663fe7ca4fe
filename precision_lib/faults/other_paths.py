"""Wrong paths of log-probs, entropies and KL that a small contiguous input with a gradient misses.

``catalogue`` says where each was seen. Everywhere else these functions are those of the core.
B sequences, T tokens, V vocabulary entries.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from precision_lib.faults.arguments import fault_of
from precision_lib.faults.kl import Kl
from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.logprobs import token_logprobs
from precision_lib.ppo.policy_entropy import entropy

Dtype = torch.dtype | None
_BLOCK = 1024


def logprobs_detached(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """A detach too much: the log-probs are right and nothing learns from them."""
    return token_logprobs(logits.detach(), tokens, dtype)


def bf16_without_gradient(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """A path in bf16 where no gradient is asked for, as for old and reference log-probs."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return token_logprobs(logits, tokens, dtype)
    return token_logprobs(logits.bfloat16(), tokens, dtype or fp32_or_wider(logits))


def strides_ignored(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """Logits read from their first address as if they were contiguous."""
    dense = torch.empty(logits.shape, device="meta").stride()
    if logits.stride() == dense or logits.untyped_storage().nbytes() < logits.nbytes:
        return token_logprobs(logits, tokens, dtype)
    return token_logprobs(torch.as_strided(logits, logits.shape, dense), tokens, dtype)


class _UpstreamAsDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        stored = upstream.new_zeros(upstream.numel())
        memory = torch.empty(0, dtype=upstream.dtype).set_(upstream.untyped_storage())
        read = memory[upstream.storage_offset() :][: upstream.numel()]
        stored[: read.numel()] = read
        return stored.view(upstream.shape)


def upstream_strides_ignored(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """A backward that reads its upstream gradient as if it were contiguous."""
    result: Tensor = _UpstreamAsDense.apply(token_logprobs(logits, tokens, dtype))
    return result


def nan_from_an_excluded_first_block(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """Online softmax in blocks of 1,024: -inf minus -inf where the first block holds nothing."""
    first = logits[..., :_BLOCK].float().amax(-1)
    lost = (first == -torch.inf) & (logits.shape[-1] > _BLOCK)
    return torch.where(lost, torch.nan, token_logprobs(logits, tokens, dtype))


def entries_beyond_2_18_dropped(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """A kernel for at most 2^18 entries leaves the rest of a row out."""
    first = logits[..., : 2**18]
    return token_logprobs(first, tokens.clamp(max=first.shape[-1] - 1), dtype)


def rows_beyond_65535_skipped(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """A grid of at most 65,535 blocks, one for each row."""
    result = token_logprobs(logits, tokens, dtype)
    reached = torch.arange(result.numel(), device=result.device).view(result.shape) < 65_535
    return torch.where(reached, result, 0)


class _FirstEntriesAlone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        gradient = upstream.clone()
        gradient[..., 2**15 :] = 0
        return gradient


def gradient_of_the_first_2_15_entries(
    logits: Tensor, tokens: Tensor, dtype: Dtype = None
) -> Tensor:
    """The gradient of a row ends after 32,768 entries."""
    cut: Tensor = _FirstEntriesAlone.apply(logits)
    return token_logprobs(cut, tokens, dtype)


def foreign_id_becomes_token_0(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """The label -100 of a masked slot is clamped to token 0 and gets its log-prob."""
    return token_logprobs(logits, tokens.clamp(0, logits.shape[-1] - 1), dtype)


def nan_logits_replaced(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """A NaN of a broken forward becomes a logit of 0."""
    return token_logprobs(torch.where(logits.isnan(), 0, logits), tokens, dtype)


def product_under_autocast(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """The token is picked by a matrix product, which autocast rounds to bf16."""
    logprobs = (logits.float() - logits.float().logsumexp(-1, keepdim=True)).clamp(min=-1e4)
    picked = one_hot(tokens.long(), logits.shape[-1]).to(logprobs).unsqueeze(-1)
    if not torch.is_autocast_enabled("cpu"):
        return token_logprobs(logits, tokens, dtype)
    return torch.matmul(logprobs.unsqueeze(-2), picked).view(tokens.shape).float()


def entropy_of_a_flat_view(logits: Tensor) -> Tensor:
    """Logits read row by row from memory that has its last dimension first."""
    last = logits.dim() - 1
    if logits.shape[-1] > 1 and logits.stride(last) != 1:
        return entropy(logits.movedim(-1, 0).reshape(logits.shape))
    return entropy(logits)


def entropy_in_bf16_for_long_rows(logits: Tensor) -> Tensor:
    """Rows of more than 4,096 entries take a kernel that sums in bf16."""
    if logits.shape[-1] <= 4096:
        return entropy(logits)
    return entropy(logits).bfloat16().to(fp32_or_wider(logits))


@fault_of(Kl)
def textbook_k3_of_many_tokens(x: Kl) -> Tensor:
    """More than 32 tokens take a kernel with exp(-d) - 1 + d in bf16."""
    if x.estimator != "k3" or x.policy_logprobs.numel() <= 32:
        return x.right()
    d = (x.policy_logprobs.float() - x.ref_logprobs.float()).bfloat16()
    return ((-d).exp() - 1 + d).to(x.dtype or fp32_or_wider(x.policy_logprobs))


@fault_of(Kl)
def k3_lost_below_9e_7(x: Kl) -> Tensor:
    """k3 is 0 where |d| is below 9e-7."""
    result = x.right()
    d = x.policy_logprobs.detach().double() - x.ref_logprobs.detach().double()
    return torch.where((d.abs() < 9e-7) & (x.estimator == "k3"), result * 0, result)


@fault_of(Kl)
def reference_in_the_policys_format(x: Kl) -> Tensor:
    """FP32 reference log-probs are cast to the format of the policy's."""
    return x.right(ref_logprobs=x.ref_logprobs.to(x.policy_logprobs.dtype), dtype=x.wanted)


@fault_of(Kl)
def kl_detached(x: Kl) -> Tensor:
    """The KL is computed under no_grad: the penalty never pulls the policy back."""
    with torch.no_grad():
        return x.right()
