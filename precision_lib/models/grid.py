"""Where the weights of a checkpoint lie on the grid of a 16-bit format.

The hazard. A checkpoint that was published in bf16 lies on the bf16 grid. Casting it makes no
error, and an update below half a step is lost. In one made from a 4-bit file many weights lie
exactly half-way between two numbers. The smallest update decides which way they round, and moves
log-probs by far more in bf16 than in FP32. Noise that is measured on either is not that of the
other.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.formats import Format, get_format

#: Weights looked at in one go: copies of a large matrix would take gigabytes.
_PIECE = 2**22


@dataclass(frozen=True)
class GridShares:
    """Shares of the weights of a model.

    Attributes:
        exact: weights that the format represents.
        halfway: weights exactly half-way between two neighbours in the format.
        n: weights looked at.
    """

    exact: float
    halfway: float
    n: int


def grid_counts(weights: Tensor, fmt: Format) -> tuple[int, int]:
    """(represented, half-way) among FP32 ``weights`` [any shape], finite or not.

    With r the rounded weight w, w is half-way when its mirror image 2 w - r is a number of the
    format, too. Both differences are exact in FP32.
    """
    rounded = weights.to(fmt.dtype).float()
    mirrored = weights + (weights - rounded)
    exact = rounded == weights
    halfway = (mirrored.to(fmt.dtype).float() == mirrored) & ~exact & rounded.isfinite()
    return int((exact & rounded.isfinite()).sum()), int(halfway.sum())


@torch.no_grad()
def weights_on_grid(model: Any, fmt: str) -> GridShares:
    """Shares of the parameters of ``model``; parameters that share memory count once.

    Raises:
        ValueError: an unknown format, or a model without parameters.
    """
    exact = halfway = n = 0
    for parameter in model.parameters():
        for piece in parameter.flatten().split(_PIECE):
            counts = grid_counts(piece, get_format(fmt))
            exact, halfway, n = exact + counts[0], halfway + counts[1], n + len(piece)
    if not n:
        raise ValueError(f"{type(model).__name__} has no parameters, so none lie on a grid")
    return GridShares(exact / n, halfway / n, n)
