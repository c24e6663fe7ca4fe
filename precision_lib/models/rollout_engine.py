"""A rollout engine: a copy of the policy that computes in a format of the matrix's rollout column.

``fp8`` and ``int8`` are scaled products (:mod:`precision_lib.quantized`) of all linear layers of
the trunk. Everything else of these engines is bf16: embedding, norms, attention, the KV cache, and
the LM head where it has no format of its own.
"""

from typing import Any

import torch

from precision_lib.formats import format_of
from precision_lib.models.lm_head import parameter_formats
from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.quantized import RESULT, WEIGHTS, ScaledLinear


def rollout_engine(original: Any, fmt: str) -> Any:
    """A model of its own that computes as a rollout engine in ``fmt`` does.

    Args:
        original: FP32 causal LM, unchanged.
        fmt: of :data:`precision_lib.matrix.ROLLOUT_FORMATS`; behind a slash the LM head's.

    Raises:
        TypeError: as :func:`check_engine`.
    """
    check_engine(original, fmt)
    trunk, slash, head = fmt.partition("/")
    working = working_copy(original)
    if trunk not in WEIGHTS:
        set_parameters(working, original, fmt)
        return working
    set_parameters(working, original, f"{format_of(RESULT).name}{slash}{head}")
    for name, layer in _linear_layers(original).items():
        parent, _, own = name.rpartition(".")
        setattr(working.base_model.get_submodule(parent), own, ScaledLinear(layer, trunk))
    return working


def check_engine(original: Any, fmt: str) -> None:
    """Raise TypeError for ``fp8`` and ``int8`` where the trunk has no linear layer to scale."""
    trunk = fmt.partition("/")[0]
    if trunk in WEIGHTS and not _linear_layers(original):
        raise TypeError(
            f"{type(original).__name__} has no linear layer to compute in {trunk}; "
            "use a rollout in bf16, fp16 or fp32"
        )


def _linear_layers(original: Any) -> dict[str, torch.nn.Linear]:
    """Name to layer, of the trunk."""
    named = original.base_model.named_modules()
    return {name: layer for name, layer in named if isinstance(layer, torch.nn.Linear)}


def engine_format(model: Any) -> str:
    """Format of an engine as observed: of its scaled layers where it has them."""
    scaled = {m.fmt for m in model.modules() if isinstance(m, ScaledLinear)}
    return "+".join(sorted(scaled or parameter_formats(model)))
