"""What can be wrong with the pairing of two columns, and the measure of agreement.

The measure is log(abs(d) + tiny): its mean over a row is a distance on a scale where a few large
errors do not matter.
"""

from dataclasses import dataclass

import numpy as np

from precision_lib.mismatch.schema import Array

#: A difference below this is agreement to the last bit of FP32.
TINY = 1e-7
#: Two numbers about one token agree far better than this factor (in abs(d)) against a neighbour's.
FACTOR = 2.0


@dataclass(frozen=True)
class Misalignment:
    """One thing that is wrong with the pairing of the two columns.

    Attributes:
        kind: ``missing values``, ``shift``, ``pairing``, ``unrelated``, ``first entry``, ``mask``.
        words: the evidence, one sentence.
        share: of tokens (missing values, first entry) or rows that it concerns.
        undo: the shift that undoes it, 0 for none.
    """

    kind: str
    words: str
    share: float
    undo: int = 0


def distance(d: Array) -> Array:
    """log(|d| + tiny) of each token."""
    logs: Array = np.log(np.abs(d) + TINY)
    return logs
