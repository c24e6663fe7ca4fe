"""The same call in another way: memory layout, dtype of the mask, no gradient, twice, autocast.

The hazard. A core has several paths, and a real batch takes another one than a small contiguous
tensor does: a slice of a padded buffer, an upstream gradient of stride 0, a reference forward under
``no_grad``. So every function is called in each of these ways and compared with its plain call: bit
by bit, and where bits differ with the truth, within the bound.

A variant knows the inputs and no function, so that a new function of the interface gets them all.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.conformance.calls import (
    PLAIN,
    Way,
    call,
    is_gradient,
)
from precision_lib.conformance.compare import compare
from precision_lib.conformance.contract import CONTRACTS
from precision_lib.conformance.failure import ConformanceFailure, told_as
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.layouts import (
    every_other,
    last_dimension_first,
    sliced,
    stride_0,
    transposed,
)
from precision_lib.conformance.repeated import called_again
from precision_lib.conformance.sameness import (
    SHARED_BY_SEQUENCES,
    Function,
    by_sequence,
    equal_bits,
    finite,
    first_values,
    same_as_plain,
    unless_refused,
)
from precision_lib.conformance.truth import truths

#: Arguments that are no floating-point tensors.
OPTIONS = {
    *("mask", "tokens", "estimator", "gamma", "lam", "clip_range", "mode", "level", "cap"),
    *("clip_low", "clip_high", "dual_clip", "denominator", "temperature", "beta"),
}
#: The smallest K of a group, where it is not 1.
SMALLEST_GROUP = {"rloo_advantages": 2}


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


def _called(what: str, *ways: Way) -> Callable[[str, Function, Inputs], int]:
    def holds(name: str, function: Function, inputs: Inputs) -> int:
        plain, compared = call(name, function, inputs), 0
        results = {part: x for part, x in plain.items() if not is_gradient(part)}
        for way in ways:
            got = call(name, function, inputs, way)
            wanted = plain if way.source_requires_grad else results
            compared += same_as_plain(name, what, got, wanted, inputs)
        return compared

    return holds


def _expanded(name: str, function: Function, inputs: Inputs) -> int:
    """The first sequence repeated by a stride of 0, against a contiguous copy of the same."""
    first = by_sequence(inputs, lambda x: x[:1])
    if first.mask is not None and not bool(first.mask.any()):
        first = first.each(finite) | {"mask": torch.ones_like(first.mask)}
    rows = by_sequence(first, lambda x: x.repeat_interleave(3, 0))
    got = call(name, function, rows, Way(layout=stride_0))
    return same_as_plain(name, "with expanded rows", got, call(name, function, rows), rows)


def _strided_upstream(name: str, function: Function, inputs: Inputs) -> int:
    """Weights of stride 2, against dense ones; then ones of stride 0, as ``.sum()`` gives them."""
    strided = Way(weights=lambda result: every_other(PLAIN.weights(result)))
    plain, got = (call(name, function, inputs, way) for way in (PLAIN, strided))
    what = "with an upstream gradient of stride 2"
    compared = same_as_plain(name, what, got, plain, inputs)
    ones = Way(weights=torch.ones_like)
    summed = Way(weights=lambda result: result.new_ones(()).expand(result.shape))
    plain, got = (call(name, function, inputs, way) for way in (ones, summed))
    for part in filter(is_gradient, plain):
        if not equal_bits(got[part], plain[part]):
            what = f"an upstream gradient of stride 0, as sum() gives it, changes the {part}"
            values, dense = first_values(got[part]), first_values(plain[part])
            raise ConformanceFailure(
                f"{name}: {what}\n  got {values}, with a dense one {dense}", inputs
            )
    return compared


def _other_dtype(key: str, dtypes: tuple[torch.dtype, ...]) -> Callable[..., int]:
    """An input of 0 and 1, or of ids, in other formats: the same result, or a refusal."""

    def holds(name: str, function: Function, inputs: Inputs) -> int:
        plain = call(name, function, inputs)
        compared = 0
        for dtype in dtypes:
            changed = inputs | {key: inputs[key].to(dtype)}
            got = unless_refused(name, function, changed)
            what = f"with {key} in {dtype}"
            compared += 1 if got is None else same_as_plain(name, what, got, plain, inputs)
        return compared

    return holds


def _mixed_formats(name: str, function: Function, inputs: Inputs) -> int:
    """One input as drawn beside the others in FP32, off the 16-bit grid; and the reverse."""
    keys, compared = list(inputs.floating()), 0
    for fine in (keys[1:], keys[:1]):
        changed = inputs | {k: _off_the_grid(inputs[k]) for k in fine}
        got, names = call(name, function, changed), ", ".join(fine)
        for part, truth in truths(name, changed).items():
            with told_as(f"{name} fails with {names} in float32 beside 16-bit inputs"):
                compared += compare(name, got[part], truth, changed)[0] if part in got else 0
    return compared


def _off_the_grid(x: Tensor) -> Tensor:
    """FP32 values a third of a 16-bit step away; they keep their sign, zeros and infinities."""
    return x.float() * (1 - 2.0**-11 / 3)


def _square(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    """The sequences repeated until there are as many as tokens, where there are tokens."""
    own = [v for k, v in inputs.tensors.items() if k not in SHARED_BY_SEQUENCES]
    tokens = [x.shape[1] for x in own if x.dim() > 1][:1]
    return lambda x: x[torch.arange(tokens[0]) % len(x)] if tokens else x


def _part_of_the_batch(name: str, function: Function, inputs: Inputs) -> int:
    """B = 1, T = 1, both, and B = T, which hides a wrong axis: each is judged on its own."""
    compared = 0
    for what, cut in (
        ("with one sequence", lambda x: x[:1]),
        ("with one token in each sequence", lambda x: x[:, :1] if x.dim() > 1 else x),
        ("with one token", lambda x: x[:1, :1] if x.dim() > 1 else x[:1]),
        ("with as many sequences as tokens", _square(inputs)),
    ):
        changed = by_sequence(inputs, lambda x, cut=cut: cut(x).clone())  # type: ignore[misc]
        if changed.mask is not None and not bool(changed.mask.any()):
            continue
        if "rewards" in changed and changed["rewards"].shape[-1] < SMALLEST_GROUP.get(name, 1):
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
    shared = [f"gradient_of_{key}" for key in SHARED_BY_SEQUENCES]
    straight = {part: x if part in shared else flipped(x) for part, x in got.items()}
    return same_as_plain(name, "with the sequences in reverse order", straight, plain, inputs)


def _with_holes(name: str, function: Function, inputs: Inputs) -> int:
    """Two masked slots before each real token but the first: the same result, 0 in the holes."""
    mask = inputs["mask"]
    holed = torch.zeros(len(mask), 3 * mask.shape[1] - 2, dtype=torch.bool)
    holed[:, ::3] = mask
    changed = inputs | {"mask": holed}
    for key, value in inputs.tensors.items():
        if key != "mask" and value.shape == mask.shape:
            filler = torch.nan if value.is_floating_point() else 0
            wide = value.new_full(holed.shape, filler)
            wide[:, ::3] = value
            changed |= {key: wide}
    got = unless_refused(name, function, changed)
    if got is None:
        return 1
    in_holes = [x[~holed] for x in got.values() if x.shape == holed.shape]
    if any(bool((x != 0).any()) for x in in_holes):
        raise ConformanceFailure(f"{name}: the result in a hole of the mask is not 0", changed)
    packed = {part: x[:, ::3] if x.shape == holed.shape else x for part, x in got.items()}
    plain = call(name, function, inputs)
    try:
        return same_as_plain(name, "with holes in the mask", packed, plain, inputs)
    except ConformanceFailure as failure:  # shows the input with the holes
        raise ConformanceFailure(str(failure.args[0]), changed, failure.times) from None


def autocast() -> AbstractContextManager[Any]:
    """A region of bf16 autocast on the device in use, as a trainer opens it."""
    return torch.autocast("cuda" if torch.cuda.is_initialized() else "cpu", torch.bfloat16)


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
        lambda name, _: bool(CONTRACTS[name].sources and CONTRACTS[name].like),
    ),
    "mask_of_numbers": Variant(
        "a mask of 0 and 1 in int64, uint8 or float32: the same result, or a refusal",
        _other_dtype("mask", (torch.int64, torch.uint8, torch.float32)),
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
        called_again,
    ),
    "reversed_sequences": Variant("the sequences of the batch in reverse order", _turned),
    "one_sequence_one_token": Variant(
        "B = 1, T = 1, both, and B = T, each judged on its own",
        _part_of_the_batch,
    ),
}


def variants_of(name: str, arguments: tuple[str, ...]) -> dict[str, Variant]:
    """Name to variant, of those that a function with these arguments has."""
    return {k: v for k, v in VARIANTS.items() if v.applies(name, arguments)}
