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

from typing import Any

from torch import Tensor

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


def other_rows(rows: int, count: int) -> int:
    """Another number of rows per forward than ``rows`` of ``count``: a third, and 2 instead of 1.

    For noise floors: a row that went alone, because it is long, goes with another one.
    """
    return max(1, min(rows, count) // 3) if rows > 1 else 2


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
    kept: list[Tensor] = []
    if model.base_model is model:
        raise TypeError(f"{type(model).__name__} has no trunk below its LM head; use a causal LM")
    handle = model.base_model.register_forward_hook(
        lambda _module, _arguments, out: kept.append(out[0])
    )
    try:
        logits = next_token_logits(model, tokens)
    finally:
        handle.remove()
    [hidden] = kept
    return hidden, logits


def trunk(model: Any, tokens: Tensor) -> Tensor:
    """Hidden states [n, L, H] alone, as :func:`trunk_and_logits` gives them: no LM head."""
    hidden: Tensor = model.base_model(input_ids=tokens, use_cache=False)[0]
    return hidden
