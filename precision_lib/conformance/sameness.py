"""A call compared with the plain call of the same inputs: the bits, or the bound of the truth."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from precision_lib.conformance.calls import PLAIN, Way, call
from precision_lib.conformance.compare import compare
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.truth import truths

#: Inputs that all sequences share: they have no dimension B.
SHARED_BY_SEQUENCES = ("weight",)

Function = Callable[..., Any]
Parts = dict[str, Tensor]


def same_as_plain(
    name: str, what: str, got: Parts, plain: Parts, inputs: Inputs, truth_of: Inputs | None = None
) -> int:
    """Number of compared elements of ``got``: the bits of ``plain``, or within the bound.

    A part that is wrong in the plain call too is the finding of another check.

    Args:
        what: the variant, as the message says it.
        truth_of: inputs whose truth ``got`` is compared with, where they are not ``inputs``.

    Raises:
        ConformanceFailure: a part is missing, of another format, or beyond its limit.
    """
    compared = 0
    for part, want in plain.items():
        if part not in got:
            raise ConformanceFailure(f"{name}: {what}: there is no {part}", inputs)
        if got[part].dtype != want.dtype:
            changed = f"the {part} is {got[part].dtype} and not {want.dtype}"
            raise ConformanceFailure(f"{name}: {what}: {changed}", inputs)
        if not equal_bits(got[part], want):
            _within_the_bound(name, what, part, (got[part], want), inputs, truth_of or inputs)
        compared += want.numel()
    return compared


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Equal values of one shape, NaN to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _within_the_bound(
    name: str, what: str, part: str, pair: tuple[Tensor, Tensor], inputs: Inputs, truth_of: Inputs
) -> None:
    got, plain = pair
    truth = truths(name, truth_of).get(part)
    if truth is None:
        raise ConformanceFailure(f"{name}: {what}: it changes the {part}", inputs)
    try:
        compare(name, got, truth, inputs)
    except ConformanceFailure as failure:
        try:
            compare(name, plain, truth, inputs)
        except ConformanceFailure:
            return
        message = f"{name} fails {what}, and not in a plain call\n  {failure.args[0]}"
        raise ConformanceFailure(message, inputs, failure.times) from None


def unless_refused(name: str, function: Function, inputs: Inputs, way: Way = PLAIN) -> Parts | None:
    """The parts of the result; None where the function raised instead of answering."""
    try:
        return call(name, function, inputs, way)
    except ConformanceFailure as failure:
        if isinstance(failure.__cause__, Exception):
            return None
        raise


def by_sequence(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with every tensor changed that has a row for each sequence."""
    own = {k: change(v) for k, v in inputs.tensors.items() if k not in SHARED_BY_SEQUENCES}
    return inputs | own


def finite(x: Tensor) -> Tensor:
    """``x`` with 0 instead of NaN and infinities."""
    return torch.nan_to_num(x, 0.0, 0.0, 0.0) if x.is_floating_point() else x


def first_values(x: Tensor) -> list[float]:
    return x.flatten()[:8].tolist()
