"""What a function has to return: the exact value and how far FP32 may be from it.

The hazard. An expected value from the code under test, or from a library routine that it uses,
agrees with its errors. Values come from ``oracle``, limits from ``bounds``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib import bounds
from precision_lib.conformance.strategies.cases import Case
from precision_lib.formats import FORMATS, format_of


@dataclass(frozen=True)
class Truth:
    """One part of a result.

    Attributes:
        part: ``result``, ``advantages``, ``returns``, ``gradient`` or ``gradient_of_`` an input.
        want: the exact value, float64.
        limit: largest error that FP32 arithmetic can make, float64, same shape.
        bound: name of the function in ``bounds`` that the limit comes from.
    """

    part: str
    want: Tensor
    limit: Tensor
    bound: str

    @property
    def of_gradient(self) -> bool:
        """Whether the part has the format of an input."""
        return self.part.startswith("gradient")


def truths(name: str, inputs: Mapping[str, Any]) -> dict[str, Truth]:
    """Part to truth, of the function called ``name`` on exactly these inputs."""
    exact = {k: _exact(v) for k, v in inputs.items()}
    from precision_lib.conformance.truths_by_function import TRUTHS  # builds on this module

    return {t.part: t for t in TRUTHS[name](exact, inputs)}


def truths_of(name: str, case: Case) -> dict[str, Truth]:
    """:func:`truths` of a case; of an embedded one from the truth of the small case."""
    if case.embedded is None:
        return truths(name, case.inputs)
    spread = case.embedded.spread
    return {
        part: replace(truth, want=spread(truth.want), limit=spread(truth.limit))
        for part, truth in truths(name, case.embedded.inputs).items()
    }


def _exact(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def truth_of(part: str, want: Any, limit: Tensor, bound: str, stored: torch.dtype) -> Truth:
    """The limit of the bound, one rounding to the format it is stored in, and lost subnormals."""
    exact = torch.from_numpy(np.asarray(want, dtype=np.float64))
    fp32, narrow = FORMATS["fp32"], format_of(stored)
    rounding = torch.zeros_like(exact)
    if narrow.significand_bits < fp32.significand_bits:
        reached = exact.abs() + torch.nan_to_num(limit, posinf=0.0)
        rounding = bounds.rounding_bound(reached.clamp(max=narrow.largest), narrow)
    return Truth(part, exact, limit + rounding + 2 * fp32.smallest_subnormal, bound)
