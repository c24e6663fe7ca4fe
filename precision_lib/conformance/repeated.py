"""A function called more than once: it has no memory, and draws no random numbers.

The hazard. What a core keeps by shape (a count, a compiled kernel) is right in the first call of a
shape and wrong in the second. A check that calls once on each input never sees it.
"""

import torch
from torch import Tensor

from precision_lib.conformance.calls import call, returned
from precision_lib.conformance.compare import compare
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.sameness import (
    Function,
    Parts,
    by_sequence,
    equal_bits,
    finite,
    first_values,
)
from precision_lib.conformance.truth import Truth, truths


def called_again(name: str, function: Function, inputs: Inputs) -> int:
    """The same call twice, then again after calls with other values and of another shape.

    At last the very same tensors are called with, after other values were written into them.
    """
    first = call(name, function, inputs)
    second = call(name, function, inputs)
    _repeats(name, "the same call twice gives two results", second, first, inputs)
    other = _other_values(inputs)
    got = call(name, function, other)
    for part, truth in truths(name, other).items():
        if part in got:
            _after(name, function, (part, got[part], truth), other)
    call(name, function, _longer(inputs))
    again = call(name, function, inputs)
    _repeats(name, "calls in between change the result", again, first, inputs)
    _overwritten(name, function, inputs, other)
    return 3 * sum(x.numel() for x in first.values())


def _overwritten(name: str, function: Function, inputs: Inputs, other: Inputs) -> None:
    """Tensors whose values change between two calls, as buffers of a trainer do."""
    given = inputs.copied()
    returned(name, function, given, inputs, torch.no_grad)
    for key, value in other.tensors.items():
        given[key].copy_(value)
    earlier = returned(name, function, given, other, torch.no_grad)
    wanted = returned(name, function, other.copied(), other, torch.no_grad)
    pairs = (
        [(earlier, wanted)] if isinstance(earlier, Tensor) else zip(earlier, wanted, strict=True)
    )
    for got, want in pairs:
        if isinstance(got, Tensor) and not equal_bits(got, want):
            what = "tensors that were overwritten since an earlier call give the earlier result"
            shown = f"got {first_values(got)}, want {first_values(want)}"
            raise ConformanceFailure(f"{name}: {what}\n  {shown}", other)


def _repeats(name: str, what: str, got: Parts, want: Parts, inputs: Inputs) -> None:
    for part, x in want.items():
        if part not in got or not equal_bits(got[part], x):
            shown = first_values(got[part]) if part in got else "nothing"
            raise ConformanceFailure(
                f"{name}: {what}: the {part} is {shown} and was {first_values(x)}", inputs
            )


def _after(name: str, function: Function, value: tuple[str, Tensor, Truth], inputs: Inputs) -> None:
    """Compare a result that followed a call of the same shape; wrong in a new shape too is no case.

    Neither is what rounding in the 16-bit format of the input explains: it is no memory.

    Raises:
        ConformanceFailure: it is wrong there and right in a shape that was not used before.
    """
    part, got, truth = value
    try:
        compare(name, got, truth, inputs)
    except ConformanceFailure as failure:
        if _is_rounding(got, truth.want, inputs):
            return
        rows = by_sequence(inputs, lambda x: x.repeat_interleave(7, 0))
        fresh, want = call(name, function, rows), truths(name, rows)
        try:
            compare(name, fresh[part], want[part], rows)
        except ConformanceFailure:
            return
        message = f"{name} fails only after a call of the same shape with other values"
        raise ConformanceFailure(f"{message}\n  {failure.args[0]}", inputs, failure.times) from None


def _is_rounding(got: Tensor, want: Tensor, inputs: Inputs) -> bool:
    """Whether 16-bit arithmetic is enough: 8 roundings of the largest value, that of the input too.

    A count that is stale by one token is off by a larger share, on the few tokens of these checks.
    """
    eps = max(torch.finfo(x.dtype).eps for x in inputs.floating().values())
    if eps <= torch.finfo(torch.float32).eps:
        return False
    return bool(((got.double() - want).abs() <= 8 * eps * want.abs().max()).all())


def _other_values(inputs: Inputs) -> Inputs:
    """The same shapes and formats with other values, and one real token less where possible."""
    changed = {k: x.roll(1, -1) * 0.5 for k, x in inputs.floating().items()}
    if inputs.mask is None:
        return inputs | changed
    mask = inputs.mask.clone()
    if int(mask.sum()) > 1:
        row = int(mask.sum(-1).argmax())
        mask[row, int(mask[row].nonzero()[-1])] = False
    for key, value in changed.items():
        real = mask if value.shape == mask.shape else mask.any(-1)
        changed[key] = torch.where(real, finite(value), torch.zeros_like(value))
    return inputs | changed | {"mask": mask}


def _longer(inputs: Inputs) -> Inputs:
    """One more sequence."""
    return by_sequence(inputs, lambda x: torch.cat([x, x[:1]]))
