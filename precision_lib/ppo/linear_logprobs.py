"""Log-probabilities straight from hidden states: the [B, T, V] logits are never held.

The hazards. Logits in bf16 are on a grid of 1/16 at 16, before any softmax sees them. A block of
the vocabulary that is filled up with zeros counts exp(0) for each of them: where all logits are
near -30, that is nearly all of the sum. The gradient of the weight is a sum over all rows: chunks
that overwrite it, add it twice or scale it lose or invent tokens. A tensor-parallel or chunked
loss needs the gradient of both factors.

N = B T rows, H hidden size, V vocabulary entries. Products and sums are FP32 (or the input's own
format if wider), whatever autocast says.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from precision_lib.ppo.logit_pieces import fp32_or_wider

#: Bytes of one block of logits, by device type, and rows of it at most.
_BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**27}
_ROWS = 1024


def linear_token_logprobs(
    hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float = 1.0
) -> Tensor:
    """log softmax(hidden @ weight.T / temperature)[tokens], block by block.

    Each block of the vocabulary keeps its largest logit and its sum of exponentials; the blocks
    are joined once. Backward makes the logits of each block again. Extra memory: one block of
    logits and of ``weight``, four numbers per row and block, and for backward the gradients, that
    of ``hidden`` in FP32.

    A slot whose upstream gradient is 0 adds exactly 0 to both gradients, whatever it holds.

    Args:
        hidden: [B, T, H], any floating-point format. weight: [V, H], likewise.
        tokens: [B, T], integer, each in [0, V).
        temperature: > 0; the logits are divided by it.

    Returns:
        [B, T], natural logs, float64 if an input is, else float32; differentiable in ``hidden``
        and ``weight``.

    Raises:
        ValueError: when the shapes do not fit, a token is outside [0, V), or the temperature is
            not positive.
        TypeError: when ``tokens`` are not integers.
    """
    _check(hidden, weight, tokens, temperature)
    rows = hidden.reshape(-1, hidden.shape[-1])
    flat = tokens.reshape(-1).long()
    logprobs: Tensor = _LinearLogprobs.apply(rows, weight, flat, float(temperature))
    return logprobs.view(tokens.shape)


def _check(hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float) -> None:
    fits = hidden.dim() == 3 and weight.dim() == 2 and hidden.shape[-1] == weight.shape[-1]
    if not (fits and tokens.shape == hidden.shape[:2]):
        raise ValueError(
            "expected hidden [B, T, H], weight [V, H] and tokens [B, T], got "
            f"{tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(tokens.shape)}"
        )
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < weight.shape[0]:
        raise ValueError(
            f"tokens lie in [{int(tokens.min())}, {int(tokens.max())}], the vocabulary has "
            f"{weight.shape[0]} entries; give masked slots any token inside"
        )


class _Blocks:
    """The logits of blocks of rows and vocabulary entries, made when they are asked for."""

    def __init__(self, rows: Tensor, weight: Tensor, temperature: float) -> None:
        self.rows, self.weight, self.temperature = rows, weight, temperature
        self.inside = fp32_or_wider(rows, weight)
        limit = _BLOCK_BYTES.get(rows.device.type, _BLOCK_BYTES["cpu"])
        self.height = max(1, min(_ROWS, rows.shape[0]))
        self.width = max(1, limit // (self.height * torch.finfo(self.inside).bits // 8))

    def entries(self) -> Iterator[tuple[slice, Tensor]]:
        """(place, weight in the inside format) of each block of the vocabulary."""
        for start in range(0, self.weight.shape[0], self.width):
            place = slice(start, min(start + self.width, self.weight.shape[0]))
            yield place, self.weight[place].to(self.inside).contiguous()

    def places(self) -> Iterator[slice]:
        """Blocks of rows."""
        for start in range(0, self.rows.shape[0], self.height):
            yield slice(start, start + self.height)

    def logits(self, states: Tensor, block: Tensor) -> Tensor:
        """[n, v], divided by the temperature."""
        z = states @ block.T
        return z if self.temperature == 1 else z.div_(self.temperature)


def _full_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)


class _LinearLogprobs(torch.autograd.Function):
    """Log-probs of rows [N, H] under weight [V, H]; keeps two numbers per row for backward."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, tokens: Tensor, temperature: float
    ) -> Tensor:
        blocks = _Blocks(rows, weight, temperature)
        dtype, device = blocks.inside, rows.device
        count = -(-weight.shape[0] // blocks.width)
        largest = torch.empty(rows.shape[0], count, dtype=dtype, device=device)
        sums, chosen = torch.empty_like(largest), torch.zeros_like(largest[:, 0])
        with _full_precision(rows.device):
            for number, (entries, block) in enumerate(blocks.entries()):
                for place in blocks.places():
                    z = blocks.logits(rows[place].to(blocks.inside).contiguous(), block)
                    inside, index = _inside(tokens[place], entries)
                    chosen[place] = torch.where(inside, _taken(z, index), chosen[place])
                    largest[place, number] = top = z.amax(-1)
                    sums[place, number] = z.sub_(top.unsqueeze(-1)).exp_().sum(-1)
        top = largest.amax(-1, keepdim=True)
        log_sum = largest.sub_(top).exp_().mul_(sums).sum(-1).log_()
        top = top.squeeze(-1)
        ctx.save_for_backward(rows, weight, tokens, top, log_sum)
        ctx.temperature = temperature
        return chosen.sub_(top).sub_(log_sum)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """dz = upstream (onehot - p) / temperature; dhidden = dz weight, dweight = dz^T hidden."""
        rows, weight, tokens, top, log_sum = ctx.saved_tensors
        blocks = _Blocks(rows, weight, ctx.temperature)
        for_rows, for_weight, *_ = ctx.needs_input_grad
        of_rows = torch.zeros(rows.shape, dtype=blocks.inside, device=rows.device)
        of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        with _full_precision(rows.device):
            for entries, block in blocks.entries():
                of_block = torch.zeros_like(block)
                for place in blocks.places():
                    g = upstream[place].unsqueeze(-1)
                    states = rows[place].to(blocks.inside).contiguous().masked_fill(g == 0, 0)
                    z = blocks.logits(states, block).sub_(top[place].unsqueeze(-1))
                    p = z.sub_(log_sum[place].unsqueeze(-1)).exp_()
                    inside, index = _inside(tokens[place], entries)
                    p.mul_(-g).scatter_add_(-1, index.unsqueeze(-1), g * inside.unsqueeze(-1))
                    dz = p.masked_fill_(g == 0, 0).div_(ctx.temperature)
                    if for_rows:
                        of_rows[place].addmm_(dz, block)
                    if for_weight:
                        of_block.addmm_(dz.T, states)
                if for_weight:
                    of_weight[entries] = of_block.to(weight.dtype)
        gradients = of_rows.to(rows.dtype) if for_rows else None, of_weight if for_weight else None
        return *gradients, None, None


def _inside(tokens: Tensor, entries: slice) -> tuple[Tensor, Tensor]:
    """Whether a token [n] lies in the block, and its place in it (0 where it does not)."""
    inside = (tokens >= entries.start) & (tokens < entries.stop)
    return inside, torch.where(inside, tokens - entries.start, 0)


def _taken(z: Tensor, index: Tensor) -> Tensor:
    return z.gather(-1, index.unsqueeze(-1)).squeeze(-1)
