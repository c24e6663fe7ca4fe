"""The same call in another way: memory layout, dtype of the mask, no gradient, twice, autocast.

The hazard. A core has several paths, and a real batch takes another one than a small contiguous
tensor does: a slice of a padded buffer, an upstream gradient of stride 0, a reference forward under
``no_grad``. So every function is called in each of these ways and compared with its plain call: bit
by bit, and where bits differ with the truth, within the bound.

A variant knows the inputs and no function, so that a new function of the interface gets them all.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.conformance.calls import (
    DIFFERENTIABLE_IN,
    PLAIN,
    SHAPED_LIKE,
    Way,
    call,
)
from precision_lib.conformance.compare import compare
from precision_lib.conformance.failure import ConformanceFailure, told_as
from precision_lib.conformance.truth import truths

#: Inputs that all sequences share: they have no dimension B.
SHARED_BY_SEQUENCES = ("weight",)

#: Arguments that are no floating-point tensors.
OPTIONS = {"mask", "tokens", "estimator", "gamma", "lam", "clip_range"}

Function = Callable[..., Any]
Inputs = Mapping[str, Any]
Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Variant:
    """Another way of calling a function.

    Attributes:
        meaning: who calls so, in one sentence.
        holds: (name, function, inputs) -> number of compared elements.
        applies: whether a function of that name, called with these inputs, has this variant.
        formats: in which it is tried.
    """

    meaning: str
    holds: Callable[[str, Function, Inputs], int]
    applies: Callable[[str, tuple[str, ...]], bool] = lambda name, arguments: True
    formats: tuple[str, ...] = ("bf16", "fp32")


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


def _called(what: str, *ways: Way) -> Callable[[str, Function, Inputs], int]:
    def holds(name: str, function: Function, inputs: Inputs) -> int:
        plain = call(name, function, inputs)
        compared = 0
        for way in ways:
            got = call(name, function, inputs, way)
            wanted = plain if way.source_requires_grad else _without_gradient(plain)
            compared += same_as_plain(name, what, got, wanted, inputs)
        return compared

    return holds


def _without_gradient(parts: Parts) -> Parts:
    return {part: x for part, x in parts.items() if part != "gradient"}


def transposed(x: Tensor) -> Tensor:
    """[B, T, ...] stored as [T, B, ...], as a model with the sequence first makes it."""
    return x.clone() if x.dim() < 2 else x.transpose(0, 1).contiguous().transpose(0, 1)


def last_dimension_first(x: Tensor) -> Tensor:
    """[..., V] stored as [V, ...], as a product with a transposed weight makes it."""
    return x.clone() if x.dim() < 2 else x.movedim(-1, 0).contiguous().movedim(0, -1)


def sliced(x: Tensor) -> Tensor:
    """Cut out of a buffer that is longer on every side and holds NaN there, ones of a mask."""
    if not x.dim():
        return x.clone()
    filler = torch.nan if x.is_floating_point() else 1
    buffer = torch.full([size + 3 for size in x.shape], filler, dtype=x.dtype, device=x.device)
    view = buffer[tuple(slice(1, size + 1) for size in x.shape)]
    view.copy_(x)
    return view


def every_other(x: Tensor) -> Tensor:
    """Every other element of a buffer: the last dimension has stride 2."""
    if not x.dim():
        return x.clone()
    buffer = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    buffer.fill_(torch.nan if x.is_floating_point() else 1)
    buffer[..., ::2] = x
    return buffer[..., ::2]


def _expanded(name: str, function: Function, inputs: Inputs) -> int:
    """The first sequence repeated by a stride of 0, against a contiguous copy of the same."""
    first = by_sequence(inputs, lambda x: x[:1])
    if "mask" in first and not bool(first["mask"].any()):
        first = {k: _finite(v) for k, v in first.items()}
        first["mask"] = torch.ones_like(first["mask"])
    rows = by_sequence(first, lambda x: x.repeat_interleave(3, 0))
    got = call(name, function, rows, Way(layout=_stride_0))
    return same_as_plain(name, "with expanded rows", got, call(name, function, rows), rows)


def _stride_0(x: Tensor) -> Tensor:
    """Equal rows that share their memory; other tensors as they are."""
    shared = x[:1].clone().expand(x.shape)
    return shared if equal_bits(x, shared) else x.clone()


def by_sequence(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The inputs with every tensor changed that has a row for each sequence."""
    return {
        k: change(v) if isinstance(v, Tensor) and k not in SHARED_BY_SEQUENCES else v
        for k, v in inputs.items()
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.nan_to_num(value, 0.0, 0.0, 0.0)
    return value


def _strided_upstream(name: str, function: Function, inputs: Inputs) -> int:
    """Weights of stride 2, against dense ones; then ones of stride 0, as ``.sum()`` gives them."""
    strided = Way(weights=lambda result: every_other(PLAIN.weights(result)))
    plain, got = (call(name, function, inputs, way) for way in (PLAIN, strided))
    what = "with an upstream gradient of stride 2"
    compared = same_as_plain(name, what, got, plain, inputs)
    ones = Way(weights=torch.ones_like)
    summed = Way(weights=lambda result: result.new_ones(()).expand(result.shape))
    plain, got = (call(name, function, inputs, way) for way in (ones, summed))
    if "gradient" in plain and not equal_bits(got["gradient"], plain["gradient"]):
        what = "an upstream gradient of stride 0, as sum() gives it, changes the gradient"
        pair = f"got {_first(got['gradient'])}, with a dense one {_first(plain['gradient'])}"
        raise ConformanceFailure(f"{name}: {what}\n  {pair}", inputs)
    return compared


def _first(x: Tensor) -> list[float]:
    return x.flatten()[:8].tolist()


def _other_dtype(key: str, dtypes: tuple[torch.dtype, ...]) -> Callable[..., int]:
    """An input of 0 and 1, or of ids, in other formats: the same result, or a refusal."""

    def holds(name: str, function: Function, inputs: Inputs) -> int:
        plain = call(name, function, inputs)
        compared = 0
        for dtype in dtypes:
            changed = dict(inputs) | {key: inputs[key].to(dtype)}
            got = unless_refused(name, function, changed)
            what = f"with {key} in {dtype}"
            compared += 1 if got is None else same_as_plain(name, what, got, plain, inputs)
        return compared

    return holds


def unless_refused(name: str, function: Function, inputs: Inputs, way: Way = PLAIN) -> Parts | None:
    """The parts of the result; None where the function raised instead of answering."""
    try:
        return call(name, function, inputs, way)
    except ConformanceFailure as failure:
        if isinstance(failure.__cause__, Exception):
            return None
        raise


def _mixed_formats(name: str, function: Function, inputs: Inputs) -> int:
    """One input as drawn beside the others in FP32, off the 16-bit grid; and the reverse."""
    keys = [k for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
    compared = 0
    for fine in (keys[1:], keys[:1]):
        changed = dict(inputs) | {k: _off_the_grid(inputs[k]) for k in fine}
        got, names = call(name, function, changed), ", ".join(fine)
        for part, truth in truths(name, changed).items():
            with told_as(f"{name} fails with {names} in float32 beside 16-bit inputs"):
                compared += compare(name, got[part], truth, changed)[0] if part in got else 0
    return compared


def _off_the_grid(x: Tensor) -> Tensor:
    """FP32 values a third of a 16-bit step away; they keep their sign, zeros and infinities."""
    return x.float() * (1 - 2.0**-11 / 3)


def _called_again(name: str, function: Function, inputs: Inputs) -> int:
    """The same call twice, then again after calls with other values and of another shape."""
    first = call(name, function, inputs)
    second = call(name, function, inputs)
    _repeats(name, "the same call twice gives two results", second, first, inputs)
    other = _other_values(inputs)
    got = call(name, function, other)
    for part, truth in truths(name, other).items():
        if part in got:
            _after(name, function, (part, got[part], truth), inputs, other)
    call(name, function, _longer(inputs))
    again = call(name, function, inputs)
    _repeats(name, "calls in between change the result", again, first, inputs)
    return 3 * sum(x.numel() for x in first.values())


def _repeats(name: str, what: str, got: Parts, want: Parts, inputs: Inputs) -> None:
    for part, x in want.items():
        if part not in got or not equal_bits(got[part], x):
            shown = _first(got[part]) if part in got else "nothing"
            raise ConformanceFailure(
                f"{name}: {what}: the {part} is {shown} and was {_first(x)}", inputs
            )


def _after(
    name: str, function: Function, found: tuple[str, Tensor, Any], before: Inputs, inputs: Inputs
) -> None:
    """Compare a result that followed a call of the same shape; wrong in a new shape too is no case.

    Raises:
        ConformanceFailure: it is wrong there and right in a shape that was not used before.
    """
    part, got, truth = found
    try:
        compare(name, got, truth, inputs)
    except ConformanceFailure as failure:
        rows = by_sequence(inputs, lambda x: x.repeat_interleave(7, 0))
        fresh, want = call(name, function, rows), truths(name, rows)
        try:
            compare(name, fresh[part], want[part], rows)
        except ConformanceFailure:
            return
        message = f"{name} fails only after a call of the same shape with other values"
        raise ConformanceFailure(f"{message}\n  {failure.args[0]}", inputs, failure.times) from None


def _other_values(inputs: Inputs) -> dict[str, Any]:
    """The same shapes and formats with other values, and one real token less where possible."""
    changed = dict(inputs)
    for key, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            changed[key] = value.roll(1, -1) * 0.5
    if "mask" in inputs:
        mask = inputs["mask"].clone()
        if int(mask.sum()) > 1:
            row = int(mask.sum(-1).argmax())
            mask[row, int(mask[row].sum()) - 1] = False
        changed["mask"] = mask
        for key, value in changed.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                changed[key] = torch.where(mask, _finite(value), torch.zeros_like(value))
    return changed


def _longer(inputs: Inputs) -> dict[str, Any]:
    """One more sequence."""
    return by_sequence(inputs, lambda x: torch.cat([x, x[:1]]))


def _part_of_the_batch(name: str, function: Function, inputs: Inputs) -> int:
    """B = 1, T = 1 and both: each is judged on its own."""
    compared = 0
    for what, cut in (
        ("with one sequence", lambda x: x[:1]),
        ("with one token in each sequence", lambda x: x[:, :1] if x.dim() > 1 else x),
        ("with one token", lambda x: x[:1, :1] if x.dim() > 1 else x[:1]),
    ):
        changed = by_sequence(inputs, lambda x, cut=cut: cut(x).clone())  # type: ignore[misc]
        if "mask" in changed and not bool(changed["mask"].any()):
            continue
        got = call(name, function, changed)
        for part, truth in truths(name, changed).items():
            with told_as(f"{name} fails {what}"):
                compared += compare(name, got[part], truth, changed)[0] if part in got else 0
    return compared


def _turned(name: str, function: Function, inputs: Inputs) -> int:
    """The sequences in reverse order, with their upstream gradients: results in reverse order."""

    def flipped(x: Tensor) -> Tensor:
        return x.flip(0) if x.dim() else x

    plain = call(name, function, inputs)
    way = Way(weights=lambda result: flipped(PLAIN.weights(result)))
    got = call(name, function, by_sequence(inputs, flipped), way)
    straight = {part: flipped(x) for part, x in got.items()}
    return same_as_plain(name, "with the sequences in reverse order", straight, plain, inputs)


def _with_holes(name: str, function: Function, inputs: Inputs) -> int:
    """Two masked slots before each real token but the first: the same result, 0 in the holes."""
    mask = inputs["mask"]
    holed = torch.zeros(len(mask), 3 * mask.shape[1] - 2, dtype=torch.bool)
    holed[:, ::3] = mask
    changed = dict(inputs) | {"mask": holed}
    for key, value in inputs.items():
        if isinstance(value, Tensor) and key != "mask" and value.shape == mask.shape:
            filler = torch.nan if value.is_floating_point() else 0
            changed[key] = torch.full(holed.shape, filler, dtype=value.dtype)
            changed[key][:, ::3] = value
    got = unless_refused(name, function, changed)
    if got is None:
        return 1
    in_holes = [x[~holed] for x in got.values() if x.shape == holed.shape]
    if any(bool((x != 0).any()) for x in in_holes):
        raise ConformanceFailure(f"{name}: the result in a hole of the mask is not 0", changed)
    packed = {part: x[:, ::3] if x.shape == holed.shape else x for part, x in got.items()}
    return _same_without(name, packed, call(name, function, inputs), (inputs, changed))


def _same_without(name: str, got: Parts, plain: Parts, pair: tuple[Inputs, Inputs]) -> int:
    """Compare with what the tokens give without holes; the failure shows the input with them."""
    inputs, holed = pair
    try:
        return same_as_plain(name, "with holes in the mask", got, plain, inputs)
    except ConformanceFailure as failure:
        raise ConformanceFailure(str(failure.args[0]), holed, failure.times) from None


def autocast() -> AbstractContextManager[Any]:
    """A region of bf16 autocast on the CPU and on CUDA."""
    stack = ExitStack()
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        stack.enter_context(torch.autocast(device, torch.bfloat16))
    return stack


def _has(key: str) -> Callable[[str, tuple[str, ...]], bool]:
    return lambda name, arguments: key in arguments


_FROZEN = (
    Way(source_requires_grad=False, context=torch.no_grad),
    Way(source_requires_grad=False),
    Way(source_requires_grad=False, context=torch.inference_mode),
)

VARIANTS: dict[str, Variant] = {
    "transposed": Variant(
        "tensors whose sequence dimension comes first in memory",
        _called("with transposed inputs", Way(layout=transposed)),
    ),
    "last_dimension_first": Variant(
        "tensors whose last dimension comes first in memory",
        _called("with the last dimension first in memory", Way(layout=last_dimension_first)),
    ),
    "sliced": Variant(
        "slices of a longer buffer, as of a padded vocabulary, and of every other element",
        _called("with inputs cut out of a buffer", Way(layout=sliced), Way(layout=every_other)),
    ),
    "expanded": Variant("rows that share their memory, with a stride of 0", _expanded),
    "strided_upstream": Variant(
        "upstream gradients with strides of 2 and, as sum() gives them, of 0",
        _strided_upstream,
        lambda name, _: name in DIFFERENTIABLE_IN and SHAPED_LIKE.get(name) is not None,
    ),
    "mask_of_numbers": Variant(
        "a mask of 0 and 1 in int64 or float32: the same result, or a refusal",
        _other_dtype("mask", (torch.int64, torch.float32)),
        _has("mask"),
    ),
    "int32_tokens": Variant(
        "token ids in int32: the same result, or a refusal",
        _other_dtype("tokens", (torch.int32,)),
        _has("tokens"),
    ),
    "holes_in_the_mask": Variant(
        "masked slots between real tokens, as in several turns: the same result, or a refusal",
        _with_holes,
        _has("mask"),
    ),
    "mixed_formats": Variant(
        "FP32 tensors, such as old log-probs, beside 16-bit ones",
        _mixed_formats,
        lambda _, arguments: len(set(arguments) - OPTIONS) > 1,
        ("bf16", "fp16"),
    ),
    "without_gradient": Variant(
        "no_grad, inference_mode, or an input that needs no gradient, as for a reference model",
        _called("without a gradient", *_FROZEN),
    ),
    "autocast": Variant(
        "a region of bf16 autocast, in which a trainer calls its loss",
        _called("under autocast", Way(context=autocast)),
    ),
    "called_again": Variant(
        "the same call twice, and again after calls with other values and of another shape",
        _called_again,
    ),
    "reversed_sequences": Variant("the sequences of the batch in reverse order", _turned),
    "one_sequence_one_token": Variant(
        "B = 1, T = 1 and both, each judged on its own",
        _part_of_the_batch,
    ),
}


def variants_of(name: str, arguments: tuple[str, ...]) -> dict[str, Variant]:
    """Name to variant, of those that a function with these arguments has."""
    return {k: v for k, v in VARIANTS.items() if v.applies(name, arguments)}
