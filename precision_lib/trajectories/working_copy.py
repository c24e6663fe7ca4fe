"""One working copy at a time: a model's architecture, holding another one's parameters in a format.

``copy.deepcopy`` of an FP32 model would need its whole size before a parameter is cast. So the copy
is made hollow, its parameters are placeholders without memory, and the one cast that every
configuration begins with fills it.
"""

from dataclasses import dataclass
from typing import Any

import torch

from precision_lib.models.loading import set_parameters
from precision_lib.models.placement import copy_in_place

FULL = "fp32"


def hollow_copy(model: Any) -> Any:
    """A model of the same architecture and buffers whose parameters take no memory yet.

    ``set_parameters`` makes it usable. Tied parameters stay tied, devices are the original's.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        nothing = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
        memo[id(parameter)] = torch.nn.Parameter(
            nothing.expand(parameter.shape), requires_grad=False
        )
    return copy_in_place(model, memo)


@dataclass
class WorkingCopy:
    """The one working copy; asking for another model or format replaces what it held."""

    _model: Any = None
    _original: Any = None
    _format: str = ""

    def of(self, original: Any, fmt: str) -> Any:
        """``original`` itself in FP32, else its working copy in ``fmt``."""
        if fmt == FULL:
            return original
        if (self._original, self._format) != (original, fmt):
            if self._model is None or _shapes(self._model) != _shapes(original):
                self._model = None  # free it before the next one is made
                self._model = hollow_copy(original)
            set_parameters(self._model, original, fmt)
            self._original, self._format = original, fmt
        return self._model


def _shapes(model: Any) -> tuple[Any, ...]:
    """What two models must share for one to hold the parameters of the other."""
    named = ((name, tuple(p.shape)) for name, p in model.named_parameters())
    return type(model), str(model.config.to_dict() | {"dtype": None}), *sorted(named)
