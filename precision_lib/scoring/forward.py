"""One teacher-forced forward: what the LM head reads and what it gives, for fixed tokens.

The hazards. Log-probs that a decoder gathered step by step from its KV cache carry another noise
than those of a forward over the whole sequence: in bf16 the difference is as large as the signal.
A second forward for the value head may differ from the first in its batch shape and thereby in its
last bits. And the hidden states that ``output_hidden_states=True`` returns differ between
architectures in whether the last one has passed the final norm. So log-probs and values come from
the same forward, and the hidden state is what the trunk hands to the LM head. In a model that is
spread over devices the last layer is not where the tokens are: logits come back to the tokens,
hidden states stay.

n rows, L tokens of each, V vocabulary, H hidden size.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from precision_lib.casts import Float64Casts
from precision_lib.formats import format_of, get_format
from precision_lib.models.lm_head import parameter_formats
from precision_lib.models.value_head import predict_values
from precision_lib.ppo.logprobs import shift, token_logprobs

#: Bytes that the FP32 logits of one forward may take, by device type; the micro-batch follows from
#: it. Beyond this a CPU's allocator maps and unmaps each temporary: 128 MiB was measured 1.8 times
#: slower. On a GPU every forward costs its launches, whatever its size.
LOGITS_BYTES = {"cpu": 2**24, "cuda": 2**30}


def rows_per_forward(length: int, model: Any) -> int:
    """Rows of ``length`` tokens per forward of ``model``: FP32 logits take at most LOGITS_BYTES.

    At least 1: a single long row over a large vocabulary may take more.
    """
    limit = LOGITS_BYTES.get(model.device.type, LOGITS_BYTES["cpu"])
    return max(1, limit // (length * vocabulary_of(model) * 4))


def vocabulary_of(model: Any) -> int:
    """V: entries of the model's input embedding."""
    return int(model.get_input_embeddings().num_embeddings)


def next_token_logits(model: Any, tokens: Tensor) -> Tensor:
    """Logits [n, L, V] of one forward over ``tokens`` [n, L], on the device of those.

    The same tensor that the model gives, unless its last layer is on another device.
    """
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.to(tokens.device)


def trunk_and_logits(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of one forward.

    Args:
        model: transformers causal LM.
        tokens: [n, L] int64, right-padded; no attention mask, because under causal attention no
            real token sees a later pad.

    Returns:
        (hidden [n, L, H] that the LM head reads, behind the final norm, on the last layer's device;
        logits [n, L, V], on the device of ``tokens``), each in the format in which the model
        computed it. Gradients flow where the model's parameters want them. A user who cares about
        memory frees the logits early.

    Raises:
        TypeError: for a model whose LM head cannot be told from its trunk.
    """
    states: list[Tensor] = []
    if model.base_model is model:
        raise TypeError(f"{type(model).__name__} has no trunk below its LM head; use a causal LM")
    handle = model.base_model.register_forward_hook(
        lambda _module, _arguments, out: states.append(out[0])
    )
    try:
        logits = next_token_logits(model, tokens)
    finally:
        handle.remove()
    [hidden] = states
    return hidden, logits


def trunk(model: Any, tokens: Tensor) -> Tensor:
    """Hidden states [n, L, H] alone, as :func:`trunk_and_logits` gives them: no LM head."""
    hidden: Tensor = model.base_model(input_ids=tokens, use_cache=False)[0]
    return hidden


@dataclass(frozen=True)
class Figures:
    """What one forward says of ``tokens[:, first + 1:]``, T of them.

    Attributes:
        logprobs: format of the log-softmax to [n, T] log-probs in it.
        values: [n, T] in the value format; None without a head.
        logits: [n, T, V], by far the largest: drop it before the next forward.
        targets: [n, T] int64, the tokens that the logits predict.
    """

    logprobs: dict[str, Tensor]
    values: Tensor | None
    logits: Tensor
    targets: Tensor


def forward(
    model: Any,
    tokens: Tensor,
    first: int,
    kl_formats: tuple[str, ...],
    head: tuple[Tensor, Tensor] | None = None,
    value_format: str = "fp32",
) -> Figures:
    """Log-probs of tokens, and their values where there is a head; differentiable in both.

    Every log-prob of this package comes from here: sampled tokens are drawn elsewhere, and scored
    here.

    Args:
        model: causal LM; its parameters' format is the format of the forward.
        tokens: [n, L] int64, right-padded, on the model's device.
        first: column of ``tokens`` before which no token is predicted.
        kl_formats: of the log-softmax; logits are cast to it first.
        head: (weight [H], bias []) of the value head.
        value_format: hidden states and head are cast to it first.
    """
    with in_own_format(model):
        hidden, logits = trunk_and_logits(model, tokens)
    aligned, targets = shift(logits[:, first:], tokens[:, first:])
    logprobs = {f: token_logprobs(aligned, targets, get_format(f).dtype) for f in kl_formats}
    values = None
    if head is not None:
        weight, bias = (x.to(hidden.device) for x in head)
        values = predict_values(hidden[:, first:-1], weight, bias, value_format)
    return Figures(logprobs, values, aligned, targets)


def formats_of(tensors: Any) -> str:
    """Formats of tensors or parameters as observed, joined by ``+`` where they differ."""
    return "+".join(sorted({format_of(x.dtype).name for x in tensors}))


def formats_of_model(model: Any) -> str:
    """:func:`formats_of` its parameters, without an LM head that has a format of its own."""
    return "+".join(sorted(parameter_formats(model)))


def in_own_format(model: Any) -> AbstractContextManager[Any]:
    """Where a model in float64 computes in it throughout; for others nothing.

    FP32 casts inside the model become float64 ones.
    """
    return Float64Casts() if formats_of_model(model) == "fp64" else nullcontext()
