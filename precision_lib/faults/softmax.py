"""Wrong log-probs and entropies: one mutation each, the rest as it should be.

All are right on a few random FP32 logits. ``catalogue`` says where each was seen.
B sequences, T tokens, V vocabulary entries.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.logprobs import token_logprobs
from precision_lib.ppo.policy_entropy import entropy

Dtype = torch.dtype | None


def _chosen(x: Tensor, tokens: Tensor) -> Tensor:
    """x[b, t, tokens[b, t]]."""
    return x.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)


def upcast_after_log_softmax(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """The log-softmax runs in the logits' format; only its result is made FP32."""
    return _chosen(logits.log_softmax(-1), tokens).to(dtype or fp32_or_wider(logits))


def logprobs_left_in_input_dtype(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """The result keeps the logits' format, rounded to it once."""
    return token_logprobs(logits, tokens).to(dtype or logits.dtype)


def laundered_fp32_buffer(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """An FP32 buffer is filled, sequence by sequence, from a log-softmax in the logits' format."""
    buffer = torch.zeros(tokens.shape, dtype=dtype or fp32_or_wider(logits), device=logits.device)
    for b in range(len(logits)):
        buffer[b] = _chosen(logits[b].log_softmax(-1), tokens[b])
    return buffer


def gather_minus_logsumexp(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """z_t - logsumexp(z): two numbers of the size of the offset are subtracted."""
    z = logits.to(dtype or fp32_or_wider(logits))
    return _chosen(z, tokens) - z.logsumexp(-1)


def gather_minus_logsumexp_in_input_dtype(
    logits: Tensor, tokens: Tensor, dtype: Dtype = None
) -> Tensor:
    """z_t - logsumexp(z) in the logits' format, and positive log-probs with it."""
    difference = _chosen(logits, tokens) - logits.logsumexp(-1)
    return difference.to(dtype or fp32_or_wider(logits))


def maximum_subtracted_in_input_dtype(
    logits: Tensor, tokens: Tensor, dtype: Dtype = None
) -> Tensor:
    """The upcast comes one operation late, after the maximum was subtracted."""
    shifted = logits - logits.amax(-1, keepdim=True)
    return token_logprobs(shifted, tokens, dtype or fp32_or_wider(logits))


def temperature_in_bf16(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """Logits pass through bf16 to be divided by a temperature, here 1."""
    scaled = logits.bfloat16().div(1.0)
    return token_logprobs(scaled, tokens, dtype or fp32_or_wider(logits))


def logits_through_fp16(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """Autocast to fp16 around a bf16 or FP32 model: logits above 65504 are inf."""
    return token_logprobs(logits.half(), tokens, dtype or fp32_or_wider(logits))


def log_softmax_summed_in_order(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """The library's CPU log_softmax, whose V terms are added in a few running sums."""
    return _chosen(logits.to(dtype or fp32_or_wider(logits)).log_softmax(-1), tokens)


def one_hot_product(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """The token is picked by a product with its one-hot vector: 0 * -inf."""
    logprobs = logits.to(dtype or fp32_or_wider(logits)).log_softmax(-1)
    return (one_hot(tokens.long(), logits.shape[-1]) * logprobs).sum(-1)


def probability_plus_epsilon(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """log(softmax + 1e-8): no -inf any more, and no log-prob below -18.4 either."""
    p = logits.to(dtype or fp32_or_wider(logits)).softmax(-1)
    return _chosen(torch.log(p + 1e-8), tokens)


def shifted_twice(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """Aligned input is shifted once more; a 0 makes up for the token that is lost."""
    return pad(token_logprobs(logits[:, :-1], tokens[:, 1:], dtype), (0, 1))


def gradient_through_bf16(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """The value is right; its gradient is rounded to bf16 on the way back."""
    z = logits.clone()
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient.bfloat16().to(gradient.dtype))
    return token_logprobs(z, tokens, dtype)


def maximum_of_the_whole_batch(logits: Tensor, tokens: Tensor, dtype: Dtype = None) -> Tensor:
    """z - max(z) over all rows at once: a row that lies 104 below it underflows to log 0."""
    z = logits.to(dtype or fp32_or_wider(logits))
    z = z - z.max()
    return _chosen(z, tokens) - z.exp().sum(-1).log()


def zero_times_minus_inf(logits: Tensor) -> Tensor:
    """-sum p log p with nothing done about a probability of 0."""
    logprobs = logits.to(fp32_or_wider(logits)).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def nan_replaced_after_the_product(logits: Tensor) -> Tensor:
    """The NaN of 0 * -inf is replaced in the value; the gradient still multiplies 0 by -inf."""
    logprobs = logits.to(fp32_or_wider(logits)).log_softmax(-1)
    return -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1)


def entropy_as_logsumexp_minus_mean(logits: Tensor) -> Tensor:
    """logsumexp(z) - sum p z: two numbers of the size of the offset are subtracted."""
    z = logits.to(fp32_or_wider(logits))
    finite = z.masked_fill(z == -torch.inf, 0)
    return z.logsumexp(-1) - (z.softmax(-1) * finite).sum(-1)


def entropy_in_input_dtype(logits: Tensor) -> Tensor:
    """-sum p log p in the logits' format; only its result is made FP32."""
    logprobs = logits.log_softmax(-1)
    finite = logprobs.masked_fill(logprobs == -torch.inf, 0)
    return -(logprobs.exp() * finite).sum(-1).to(fp32_or_wider(logits))


def entropy_of_probability_plus_epsilon(logits: Tensor) -> Tensor:
    """-sum p log(p + 1e-8): every entry of a long tail is moved by 1e-8."""
    p = logits.to(fp32_or_wider(logits)).softmax(-1)
    return -(p * torch.log(p + 1e-8)).sum(-1)


def entropy_left_in_input_dtype(logits: Tensor) -> Tensor:
    """The result keeps the logits' format, rounded to it once."""
    return entropy(logits).to(logits.dtype)


def entropy_from_the_batch_maximum(logits: Tensor) -> Tensor:
    """z - max(z) over all rows at once: a row that lies 104 below it has no probability left."""
    z = logits.to(fp32_or_wider(logits))
    weights = (z - z.max()).exp()
    p = weights / weights.sum(-1, keepdim=True)
    return -torch.xlogy(p, p).sum(-1)
