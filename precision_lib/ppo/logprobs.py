"""Log-probabilities of tokens, and the one place where sequences are shifted.

The hazards. ``log(softmax(x))`` underflows to -inf where the log-softmax is exact to a few ulp
(any logit more than 104 below the largest in FP32). ``gather - logsumexp`` cancels at a large
logit offset: 5e-4 nats at 1e4. A log-softmax taken in bf16 is not a distribution, and one stored
in an FP32 tensor afterwards is not better. torch's CPU ``log_softmax`` adds its V terms in 16
running sums, which loses digits as V grows: 1.4e-5 nats at V = 151,936, where a blocked sum loses
1e-6. And logits[:, t] predict tokens[:, t + 1]: a shift that is off by one still gives finite,
plausible numbers.

B sequences, L tokens of prompt and response, T predictions, V vocabulary entries. All log-probs
are natural logarithms.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from precision_lib.ppo.logit_pieces import as_sequences, fp32_or_wider, row_pieces


def token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    dtype: torch.dtype | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """log softmax(logits / temperature)[tokens], aligned: logits[:, t] predict tokens[:, t].

    (z_t - max z) - log sum_v exp(z_v - max z) with z = logits / temperature, the sum in blocks.
    Extra memory: two MiB on a CPU, 32 on a GPU; backward adds one tensor like ``logits``, the
    gradient. A slot whose upstream gradient is 0 gets a gradient of exactly 0, whatever its logits
    hold.

    Args:
        logits: [B, T, V], any floating-point format; -inf is a legal zero probability.
        tokens: [B, T], integer, each in [0, V).
        dtype: the format of the log-softmax; default FP32, or the logits' own if wider. Logits
            are cast to it first; a 16-bit format then sums in FP32 and rounds the result once,
            which is what the CUDA kernel does. The native CPU kernel rounds in between.
        temperature: > 0, that of the sampler.

    Returns:
        [B, T] of ``dtype``, natural logs.

    Raises:
        ValueError: when the shapes do not fit or the temperature is not positive.
        TypeError: when ``tokens`` are not integers, or ``logits`` not floating-point numbers.
        RuntimeError: torch's own, for a token outside [0, V); give masked slots any token inside.
    """
    if logits.dim() != 3 or tokens.shape != logits.shape[:2]:
        raise ValueError(
            f"expected logits [B, T, V] and tokens [B, T], got {tuple(logits.shape)} and "
            f"{tuple(tokens.shape)}; align them with shift() first"
        )
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating-point numbers, got {logits.dtype}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    wanted = dtype or fp32_or_wider(logits)
    rows = logits.to(wanted) if torch.finfo(wanted).bits < 32 else logits
    inside = torch.promote_types(wanted, torch.float32)
    logprobs: Tensor = _TokenLogprobs.apply(rows, tokens.long(), inside, float(temperature))
    return logprobs.to(wanted)


class _TokenLogprobs(torch.autograd.Function):
    """Log-probs of logits [B, T, V]; keeps the logits and two numbers per row for backward."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, inside: torch.dtype, temperature: float
    ) -> Tensor:
        sequences = as_sequences(logits)
        largest = torch.empty(*sequences.shape[:2], 1, dtype=inside, device=logits.device)
        log_sum = torch.empty_like(largest)
        for rows, z in row_pieces(sequences, inside):
            _scale(z, temperature)
            torch.amax(z, -1, keepdim=True, out=largest[rows])
            torch.sum(z.sub_(largest[rows]).exp_(), -1, keepdim=True, out=log_sum[rows])
        log_sum.log_()
        ctx.save_for_backward(logits, tokens, largest, log_sum)
        ctx.temperature = temperature
        chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).to(inside)
        return (
            _scale(chosen, temperature)
            .sub_(largest.view(tokens.shape))
            .sub_(log_sum.view(tokens.shape))
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logits, tokens, largest, log_sum = ctx.saved_tensors
        sequences = as_sequences(logits)
        g, chosen = upstream.reshape(largest.shape), tokens.reshape(largest.shape)
        gradient = torch.empty(sequences.shape, dtype=logits.dtype, device=logits.device)
        for rows, z in row_pieces(sequences, largest.dtype):
            _scale(z, ctx.temperature)
            p = z.sub_(largest[rows]).sub_(log_sum[rows]).exp_()
            p.mul_(-g[rows]).scatter_add_(-1, chosen[rows], g[rows])
            gradient[rows] = _scale(p, ctx.temperature).masked_fill_(g[rows] == 0, 0)
        return gradient.view(logits.shape), None, None, None


def _scale(x: Tensor, temperature: float) -> Tensor:
    """``x / temperature``, in place."""
    return x if temperature == 1 else x.div_(temperature)


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
