"""Log-probabilities of tokens, and the one place where sequences are shifted.

The hazards. ``log(softmax(x))`` underflows to -inf where ``log_softmax`` is exact to a few ulp
(any logit more than 104 below the largest in FP32). ``gather - logsumexp`` cancels at a large
logit offset. A log-softmax taken in bf16 is not a distribution. And logits[:, t] predict
tokens[:, t + 1]: a shift that is off by one still gives finite, plausible numbers.

B sequences, L tokens of prompt and response, T predictions, V vocabulary entries. All log-probs
are natural logarithms.
"""

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """log softmax(logits)[tokens], already aligned: logits[:, t] predict tokens[:, t].

    Args:
        logits: [B, T, V], any floating-point format; -inf is a legal zero probability.
        tokens: [B, T], integer, each in [0, V).
        dtype: the format of the log-softmax. Logits are cast to it first; a 16-bit format then
            sums in FP32 and rounds the result once, which is what the CUDA kernel does. The
            native CPU kernel rounds in between and is not used.

    Returns:
        [B, T] of ``dtype``, natural logs.

    Raises:
        ValueError: when the shapes do not fit.
        TypeError: when ``tokens`` are not integers.
    """
    if logits.dim() != 3 or tokens.shape != logits.shape[:2]:
        raise ValueError(
            f"expected logits [B, T, V] and tokens [B, T], got {tuple(logits.shape)} and "
            f"{tuple(tokens.shape)}; align them with shift() first"
        )
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    inside = torch.promote_types(dtype, torch.float32)
    logprobs = torch.log_softmax(logits.to(dtype), dim=-1, dtype=inside)
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).to(dtype)


def shift(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Align a sequence with its predictions: logits[:, :-1] predict tokens[:, 1:].

    Args:
        logits: [B, L, V] of a forward over ``tokens``.
        tokens: [B, L].

    Returns:
        (logits [B, L-1, V], tokens [B, L-1]), as :func:`token_logprobs` wants them. A mask over
        tokens is shifted likewise, ``mask[:, 1:]``.

    Raises:
        ValueError: when the shapes do not fit or there is nothing to predict.
    """
    if logits.dim() != 3 or tokens.shape != logits.shape[:2]:
        raise ValueError(
            f"expected logits [B, L, V] and tokens [B, L], got {tuple(logits.shape)} and "
            f"{tuple(tokens.shape)}"
        )
    if tokens.shape[1] < 2:
        raise ValueError(f"a sequence of {tokens.shape[1]} token predicts nothing; give at least 2")
    return logits[:, :-1], tokens[:, 1:]


def full_kl(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(policy || reference) over the whole vocabulary: sum_v p_v (log p_v - log q_v).

    Computed in float64 whatever the input format, because near the reference it is a small
    difference of large sums. A zero probability of the policy contributes nothing.

    Args:
        policy_logits, reference_logits: [..., V].

    Returns:
        [...], float64, nats, never negative beyond rounding.
    """
    if policy_logits.shape != reference_logits.shape:
        raise ValueError(
            f"logits of different shapes: {tuple(policy_logits.shape)} and "
            f"{tuple(reference_logits.shape)}"
        )
    log_p = torch.log_softmax(policy_logits.double(), dim=-1)
    log_q = torch.log_softmax(reference_logits.double(), dim=-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p)).sum(-1)
