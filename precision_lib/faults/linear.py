"""Wrong log-probs from hidden states or with a temperature: one mutation each.

``catalogue`` says where each was seen. B sequences, T tokens, H hidden size, V vocabulary entries.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from precision_lib import arguments
from precision_lib.faults.arguments import Arguments, fault_of
from precision_lib.ppo.linear_logprobs import linear_token_logprobs
from precision_lib.ppo.logprobs import token_logprobs

#: Entries of a block of the vocabulary.
_BLOCK = 64


@dataclass(frozen=True)
class Linear(arguments.Linear[Tensor, Tensor], Arguments[Tensor]):
    """The arguments of :func:`linear_token_logprobs`, and its steps in float64."""

    temperature: float = 1.0
    original = staticmethod(linear_token_logprobs)

    def logits(self) -> Tensor:
        """[B, T, V] before the temperature."""
        return self.hidden.double() @ self.weight.double().T

    def chosen(self, logprobs: Tensor) -> Tensor:
        """FP32 log-probs of the tokens."""
        return logprobs.gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1).float()


@fault_of(Linear)
def logits_in_hidden_dtype(x: Linear) -> Tensor:
    """The logits are stored in the format of the hidden states; the softmax is FP32."""
    logits = (x.hidden.float() @ x.weight.float().T).to(x.hidden.dtype)
    return x.chosen((logits.double() / x.temperature).log_softmax(-1))


@fault_of(Linear)
def block_filled_up_with_zeros(x: Linear) -> Tensor:
    """The last block of 64 entries is filled up with logits of 0, each of which counts exp(0)."""
    logits = x.logits() / x.temperature
    filled = pad(logits, (0, -logits.shape[-1] % _BLOCK))
    return x.chosen(logits - filled.logsumexp(-1, keepdim=True))


@fault_of(Linear)
def last_block_left_out(x: Linear) -> Tensor:
    """The entries beyond the last whole block of 64 do not enter the normaliser."""
    logits = x.logits() / x.temperature
    whole = max(_BLOCK, logits.shape[-1] // _BLOCK * _BLOCK)
    return x.chosen(logits - logits[..., :whole].logsumexp(-1, keepdim=True))


@fault_of(Linear)
def weight_without_a_gradient(x: Linear) -> Tensor:
    """The vocabulary matrix is detached: the head does not learn."""
    return x.right(weight=x.weight.detach())


@fault_of(Linear)
def weight_gradient_of_the_last_row(x: Linear) -> Tensor:
    """Every chunk of rows overwrites the gradient of the weight."""
    rows = torch.arange(x.tokens.numel(), device=x.tokens.device).view(x.tokens.shape)
    last = rows == x.tokens.numel() - 1
    return torch.where(last, x.right(), x.right(weight=x.weight.detach()))


class _FirstUpstream(torch.autograd.Function):
    """The identity, whose backward takes one upstream value for all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream.flatten()[:1].expand(upstream.numel()).view(upstream.shape)


@fault_of(Linear)
def first_upstream_gradient_for_all_rows(x: Linear) -> Tensor:
    """The backward multiplies all rows by the first upstream value."""
    logprobs: Tensor = _FirstUpstream.apply(x.right())
    return logprobs


@fault_of(Linear)
def temperature_of_the_logprobs(x: Linear) -> Tensor:
    """The log-probs are divided by the temperature, not the logits."""
    return x.right(temperature=1.0) / x.temperature


@fault_of(Linear)
def linear_gradient_without_the_temperature(x: Linear) -> Tensor:
    """The backward forgets to divide by the temperature."""
    logprobs = x.right()
    return logprobs * x.temperature + (logprobs * (1 - x.temperature)).detach()


@dataclass(frozen=True)
class Tempered(Arguments[Tensor]):
    """The arguments of :func:`token_logprobs`, a temperature among them."""

    logits: Tensor
    tokens: Tensor
    dtype: torch.dtype | None = None
    temperature: float = 1.0
    original = staticmethod(token_logprobs)


@fault_of(Tempered)
def temperature_ignored(x: Tempered) -> Tensor:
    """The policy is scored at a temperature of 1, the engine sampled at another."""
    return x.right(temperature=1.0)


@fault_of(Tempered)
def temperature_applied_twice(x: Tempered) -> Tensor:
    """Logits that were divided already are divided again."""
    return x.right(temperature=x.temperature**2)


@fault_of(Tempered)
def tempered_logits_in_their_dtype(x: Tempered) -> Tensor:
    """The quotient is rounded to the format of the logits."""
    return x.right(logits=x.logits / x.temperature, temperature=1.0)


@fault_of(Tempered)
def tempered_gradient_without_the_temperature(x: Tempered) -> Tensor:
    """The backward forgets to divide by the temperature."""
    logprobs = x.right()
    return logprobs * x.temperature + (logprobs * (1 - x.temperature)).detach()
