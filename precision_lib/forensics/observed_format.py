"""Which format numbers are really in, whatever their dtype says.

The hazard is laundering: a tensor that was computed in bf16 and cast to FP32 afterwards passes
every check of its dtype and has lost its digits all the same.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from precision_lib.formats import FORMATS, format_of

if TYPE_CHECKING:
    from precision_lib.forensics.forwards import ScoredTokens
    from precision_lib.matrix import PrecisionConfig

#: So many distinct FP32 values lie on the grid of a 16-bit format by accident with a probability of
#: 2**-13 each at most: one in 2**104 for all of them.
ENOUGH = 8
_NARROW = ("bf16", "fp16")


def observed_format(x: Tensor) -> str:
    """Name of the format of ``x``; ``bf16 in fp32`` where wider storage holds narrow values only.

    Args:
        x: any shape, any floating-point format. Values that any format has (zeros, small integers
            and infinities) say nothing; fewer than :data:`ENOUGH` distinct others neither.
    """
    name = format_of(x.dtype).name
    if name in _NARROW:
        return name
    values = x.detach().flatten()
    values = torch.unique(values[torch.isfinite(values) & (values != values.round())])
    if values.numel() >= ENOUGH:
        for narrow in _NARROW:
            if torch.equal(values.to(FORMATS[narrow].dtype).to(x.dtype), values):
                return f"{narrow} in {name}"
    return name


def observed_models(
    configuration: "PrecisionConfig", scored: dict[str, "ScoredTokens"]
) -> dict[str, str]:
    """Formats as seen at run time: of each role's parameters and logits; where the LM head has a
    column of its own, the logits are its."""
    if not configuration.lm_head:
        return {r: "+".join(sorted({s.parameters, s.logits})) for r, s in scored.items()}
    of_head = {"lm_head": "+".join(sorted({s.logits for s in scored.values()}))}
    return {role: s.parameters for role, s in scored.items()} | of_head
