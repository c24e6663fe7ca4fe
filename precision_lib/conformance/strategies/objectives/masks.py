"""Masks whose real tokens lie anywhere: tool output and several turns leave holes.

``mask[b, t]`` is True for a real token.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from precision_lib.conformance.strategies.primitives import Draws

Mask = NDArray[np.bool_]
Kind = Literal["holed", "empty", "trained"]
#: A batch as a trainer has it: more sequences than three, no power of two, more tokens than bf16
#: counts.
TRAINED = (17, 257)


def holed(draws: Draws, *, empty_rows: bool = False) -> Mask:
    """[B, T], B up to 4, T up to 8, with a real token in every row.

    With ``empty_rows`` the last rows of most masks have none; the first row always has one.
    """
    rows, width = draws.integer("B", 1, 4), draws.integer("T", 1, 8)
    missing = draws.integer("missing", 0, 2 ** (rows * width) - 1)
    bits = [missing >> place & 1 for place in range(rows * width)]
    mask: Mask = np.array(bits).reshape(rows, width) == 0
    without = ~mask.any(axis=1) if not empty_rows else np.arange(rows) == 0
    mask[without & ~mask.any(axis=1), 0] = True
    if empty_rows:
        mask[rows - draws.integer("empty", 0, rows - 1) :] = False
    return mask


def trained(draws: Draws) -> Mask:
    """[17, 257] with every tenth slot or so masked, and rows of different lengths."""
    rows, width = TRAINED
    mask = draws.normal(rows * width).reshape(rows, width) > -1.3
    ends = width - draws.integer("shortening", 0, 14) * np.arange(rows)
    mask &= np.arange(width) < ends[:, None]
    mask[:, 0] = True
    return mask


def drawn_mask(draws: Draws, kind: Kind) -> Mask:
    """A mask with holes: small, small with empty rows, or of a trainer's size."""
    return trained(draws) if kind == "trained" else holed(draws, empty_rows=kind == "empty")
