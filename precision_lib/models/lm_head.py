"""An LM head in another format than its model.

The hazard. In most small models the vocabulary matrix is the embedding, too. Whoever casts the
matrix for the head casts the embedding with it, and then measures another model. So the head here
owns a cast of the FP32 matrix, and the embedding stays as it is.

V vocabulary, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor

from precision_lib.formats import format_of, get_format


class HeadInFormat(torch.nn.Module):
    """logits = h . W^T (+ b): hidden states are cast to the format of W, logits come out in it.

    Attributes:
        weight: [V, H]. bias: [V], or None.
        usual: the head that the model had, in a list, so that its parameters are not this one's.
    """

    def __init__(self, usual: Any, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.usual = [usual]
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


def use_own_head(model: Any) -> None:
    """Take a head of another format away; a model without one is left alone."""
    head = _head(model)
    if isinstance(head, HeadInFormat):
        model.set_output_embeddings(head.usual[0])


def put_head(
    working: Any,
    reference: Any,
    fmt: str,
    direction: dict[str, Tensor] | None = None,
    scale: float = 0.0,
) -> None:
    """Give ``working`` the LM head ``cast(reference + scale * direction)``.

    Args:
        working: causal LM without a head of another format.
        reference: FP32 model, unchanged.
        fmt: format name of the head.
        direction, scale: as :func:`precision_lib.models.loading.set_parameters` takes them.

    Raises:
        TypeError: a model whose LM head is no linear layer.
    """
    usual, head = _head(working), _head(reference)
    if not isinstance(head, torch.nn.Linear):
        raise TypeError(
            f"{type(reference).__name__} has no linear LM head, so lm_head = {fmt!r} cannot be "
            "applied; leave the column lm_head out"
        )
    names = {id(parameter): name for name, parameter in reference.named_parameters()}
    dtype, device = get_format(fmt).dtype, usual.weight.device

    def cast(parameter: Tensor) -> Tensor:
        value = parameter.data
        if direction is not None:
            value = torch.add(value, direction[names[id(parameter)]], alpha=scale)
        return value.to(device, dtype, copy=True)

    bias = None if head.bias is None else cast(head.bias)
    working.set_output_embeddings(HeadInFormat(usual, cast(head.weight), bias))


def parameter_formats(model: Any) -> set[str]:
    """Formats of the parameters, without those of an LM head that has a format of its own."""
    head = _head(model)
    apart = set(map(id, head.parameters())) if isinstance(head, HeadInFormat) else set()
    return {format_of(p.dtype).name for p in model.parameters() if id(p) not in apart}


def _head(model: Any) -> Any:
    """The output embedding; None for a model without one, such as a reward model."""
    return getattr(model, "get_output_embeddings", lambda: None)()
