"""Each contender's largest error as a share of the bound that FP32 arithmetic is held to.

The hazard. The fastest way to a log-prob is a wrong one. So every time in the tables stands beside
an error: at most 1 is what conformance demands, and only contenders that meet it are of equal
accuracy. Errors are against the truth of the conformance tests on the same rounded inputs, on a
slice.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from precision_lib.conformance.calls import PARTS
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.truth import Truth, truths
from tests.benchmarks.timed import Timed


@lru_cache(maxsize=1)
def _truths(case: Timed) -> dict[str, Truth]:
    """Part to truth; one slice is measured by many contenders, one after the other."""
    inputs = Inputs.of(case.inputs)
    return truths(case.function, inputs.each(lambda x: x.detach().cpu()))


def share(got: Tensor, want: Tensor, limit: Tensor) -> float:
    """Largest |got - want| / limit; inf for a NaN, and for an error where none is allowed."""
    error = (got - want).abs()
    error = torch.where(got == want, torch.zeros_like(error), error)  # also inf against inf
    ratio = torch.where(error == 0, error, error / limit).nan_to_num(nan=math.inf, posinf=math.inf)
    if ratio.numel() == 0:
        raise AssertionError("no element was compared")
    return float(ratio.max())


def error_over_limit(case: Timed, result: Any, gradient: Tensor | None) -> float:
    """The largest of all results' shares, and of the gradient's, over real tokens.

    A result that is None was not offered (a peer that returns whitened advantages, say).
    """
    results = result if isinstance(result, tuple) else (result,)
    got = dict(zip(PARTS.get(case.function, ("result",)), results, strict=True))
    mask = case.inputs.get("mask")
    shares = []
    for part, x in (got | {"gradient": gradient}).items():
        if x is None:
            continue
        truth = _truths(case)[part]
        real = ... if mask is None or truth.want.shape != mask.shape else mask.cpu()
        values = x.detach().cpu().double()
        shares.append(share(values[real], truth.want[real], truth.limit[real]))
    return max(shares)
