"""Log-probabilities from hidden states and a vocabulary matrix, and the gradients of both.

The products are float64: their error is 2^-29 of that of FP32 products.
"""

import numpy as np
from numpy.typing import NDArray

from precision_lib.arguments import Linear, taking
from precision_lib.oracle.softmax import token_logprobs, token_logprobs_gradient

Array = NDArray[np.floating]
Tokens = NDArray[np.integer]


@taking(Linear)
def linear_token_logprobs(x: Linear[Array, Tokens]) -> NDArray[np.float64]:
    """log softmax(hidden @ weight.T / temperature)[tokens], [B, T] nats.

    hidden: [B, T, H]. weight: [V, H]. tokens: [B, T].
    """
    return token_logprobs(scaled_logits(x.hidden, x.weight, x.temperature), x.tokens)


@taking(Linear)
def linear_token_logprobs_gradients(
    x: Linear[Array, Tokens], upstream: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """d (sum upstream * linear_token_logprobs) / d hidden [B, T, H] and / d weight [V, H].

    With dz = upstream (onehot - softmax) / temperature: dz weight and dz^T hidden.
    """
    logits = scaled_logits(x.hidden, x.weight, x.temperature)
    dz = token_logprobs_gradient(logits, x.tokens, upstream) / x.temperature
    rows, flat = dz.reshape(-1, dz.shape[-1]), x.hidden.astype(np.float64)
    return dz @ x.weight.astype(np.float64), rows.T @ flat.reshape(-1, flat.shape[-1])


def scaled_logits(hidden: Array, weight: Array, temperature: float) -> NDArray[np.float64]:
    """hidden @ weight.T / temperature, [B, T, V]."""
    logits: NDArray[np.float64] = hidden.astype(np.float64) @ weight.astype(np.float64).T
    return logits / temperature
