"""Which places of a model make a value, and of which kind of module and layer each is.

A place is looked for by the names of transformers' own modules. An architecture whose names are not
known here is attributed by layer alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

EMBEDDING, NORMS, QKV, ROPE = "embedding", "norms", "q/k/v", "RoPE"
SCORES, SOFTMAX, VALUE = "scores", "softmax", "value product"
OUTPUT, UP, GATE = "output projection", "MLP up", "MLP gate"
ACTIVATION, DOWN = "MLP activation", "MLP down"
RESIDUAL, LM_HEAD, LOG_SOFTMAX = "residual stream", "LM head", "log-softmax"
#: Kinds of module, in the order in which a token passes them.
KINDS = (
    EMBEDDING,
    NORMS,
    QKV,
    ROPE,
    SCORES,
    SOFTMAX,
    VALUE,
    OUTPUT,
    UP,
    GATE,
    ACTIVATION,
    DOWN,
    RESIDUAL,
    LM_HEAD,
    LOG_SOFTMAX,
)
#: Kind of everything inside a layer whose modules are not known.
LAYER = "layer"


class UnknownModelError(ValueError):
    """The layers of a model cannot be told; the message says what was looked for."""


@dataclass(frozen=True)
class Place:
    """Where values are made: a kind of module in a layer, None outside of the layers."""

    kind: str
    layer: int | None = None

    @property
    def stage(self) -> str:
        """The layer as a label; outside of the layers the final norm, or the kind."""
        if self.layer is not None:
            return f"layer {self.layer}"
        return "final norm" if self.kind == NORMS else self.kind


@dataclass(frozen=True)
class Names:
    """Names of the modules of one architecture.

    Attributes:
        outputs: module of a layer to the kind of what it gives; a name that a layer lacks is
            passed over (Qwen3 has norms of q and k, Llama has none).
        inputs: module of a layer to the kind of what enters it, where no module gives that.
        attention: module of a layer with the two products of attention; "" for none known.
        rope: whether q and k are turned between their projections and the first product.
        final_norm: module of the trunk behind the layers; "" where it counts as the LM head's.
        layer_output: kind of what a layer gives.
    """

    outputs: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    attention: str = ""
    rope: bool = False
    final_norm: str = ""
    layer_output: str = LAYER


_LLAMA = Names(
    outputs={
        "input_layernorm": NORMS,
        "self_attn.q_proj": QKV,
        "self_attn.k_proj": QKV,
        "self_attn.v_proj": QKV,
        "self_attn.q_norm": NORMS,
        "self_attn.k_norm": NORMS,
        "self_attn.o_proj": OUTPUT,
        "post_attention_layernorm": NORMS,
        "mlp.gate_proj": GATE,
        "mlp.up_proj": UP,
        "mlp.down_proj": DOWN,
    },
    inputs={"post_attention_layernorm": RESIDUAL, "mlp.down_proj": ACTIVATION},
    attention="self_attn",
    rope=True,
    final_norm="norm",
    layer_output=RESIDUAL,
)
_GPT2 = Names(
    outputs={
        "ln_1": NORMS,
        "attn.c_attn": QKV,
        "attn.c_proj": OUTPUT,
        "ln_2": NORMS,
        "mlp.c_fc": UP,
        "mlp.c_proj": DOWN,
    },
    inputs={"ln_2": RESIDUAL, "mlp.c_proj": ACTIVATION},
    attention="attn",
    final_norm="ln_f",
    layer_output=RESIDUAL,
)
_BY_MODEL_TYPE = {"llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gpt2": _GPT2}
_UNKNOWN = Names()


def names_of(model: Any) -> Names:
    """The names of a model's architecture; for an unknown one those of its layers alone."""
    return _BY_MODEL_TYPE.get(model.config.model_type, _UNKNOWN)


def knows_kinds(model: Any) -> bool:
    """Whether the kinds of modules of this architecture are known."""
    return names_of(model) is not _UNKNOWN


def layers_of(model: Any) -> list[nn.Module]:
    """The layers of a causal LM: the list of modules that is as long as its config says.

    Raises:
        UnknownModelError: there is no such list.
    """
    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UnknownModelError(
        f"{type(model).__name__} has no list of {count} layers below its trunk, so its error "
        "cannot be attributed; give a causal LM of transformers with num_hidden_layers layers"
    )


def places_of(model: Any) -> tuple[Place, ...]:
    """Every place of the model, in the order in which a token passes them, log-softmax last."""
    names, layers = names_of(model), range(len(layers_of(model)))
    kinds = {*names.outputs.values(), *names.inputs.values(), names.layer_output}
    if names.attention:
        kinds |= {SCORES, SOFTMAX, VALUE}
    if names.rope:
        kinds |= {ROPE}
    inside = [kind for kind in (*KINDS, LAYER) if kind in kinds]
    outside = [*([NORMS] if names.final_norm else []), LM_HEAD, LOG_SOFTMAX]
    return (
        Place(EMBEDDING),
        *(Place(kind, layer) for layer in layers for kind in inside),
        *(Place(kind) for kind in outside),
    )
