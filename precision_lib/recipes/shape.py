"""The sizes of a model that its cost depends on, from its configuration: no weight is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UnknownShapeError(ValueError):
    """The sizes of a model cannot be told; the message says why and what to do."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal LM.

    Attributes:
        name: of the model.
        parameters: all of them, a tied LM head once.
        lm_head: weights of the LM head's product.
        tied: the LM head is the embedding.
        trunk_linear: weights of the linear layers before the LM head.
        kv_numbers_per_token: numbers that the KV cache keeps for a token.
    """

    name: str
    parameters: int
    lm_head: int
    tied: bool
    trunk_linear: int
    kv_numbers_per_token: int


def shape_of(model: str) -> Shape:
    """The shape of a model by its directory, hub name, or ``embedded``.

    Raises:
        UnknownShapeError: no configuration of a causal LM is there, or no KV heads are named in it.
    """
    from transformers import AutoConfig

    from precision_lib.models import refusals
    from precision_lib.models.embedded import POLICY_DIR
    from precision_lib.models.loading import EMBEDDED

    place: str | Path = POLICY_DIR if model == EMBEDDED else model
    if refusal := refusals.of_directory(Path(place)):
        raise UnknownShapeError(refusal)
    try:
        config = AutoConfig.from_pretrained(place)
        return _shape(model, config)
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UnknownShapeError(
            f"the sizes of {model} cannot be read ({error}); give a causal LM with --model"
        ) from None


def _shape(name: str, config: Any) -> Shape:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    linear = [m.weight for m in model.base_model.modules() if _is_linear(m)]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        lm_head=head.numel(),
        tied=tied,
        trunk_linear=sum(w.numel() for w in linear),
        kv_numbers_per_token=2 * config.num_hidden_layers * heads * width,
    )


def _is_linear(module: Any) -> bool:
    """``torch.nn.Linear``, or GPT-2's ``Conv1D``."""
    return type(module).__name__ in ("Linear", "Conv1D")
