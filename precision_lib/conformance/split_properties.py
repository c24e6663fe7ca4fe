"""One batch, cut in every way that trainers cut it: the parts add up to the whole.

The hazard. A tolerance of a few roundings does not see a denominator that is right for the batch
of the test. Here ratios are 1 or clipped at a power of two, counts are powers of two, losses are
small dyadic numbers: every healthy evaluation is exact, in any order, and the sum over the parts is
that of the whole to the last bit.

``mask[b, t]`` is True for a real token; B sequences, T tokens.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from precision_lib.conformance import splits
from precision_lib.conformance.calls import call, upstream
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Arguments, Inputs
from precision_lib.conformance.properties import Function, Property
from precision_lib.conformance.strategies.cases import Case
from precision_lib.conformance.truth import of_oracle, truths
from precision_lib.formats import Format
from precision_lib.targets.objectives import base

_FILLERS = (0.0, torch.nan, torch.inf, 9.0)
#: exp(64) is beyond every clip, and finite in FP32.
_FAR = 64.0
_CLIPS = {"clip_low": 0.5, "clip_high": 0.25}
CUT_BY_SEQUENCE: dict[str, tuple[splits.Cut, str]] = {
    "whole_batch": (splits.whole, "the batch as it is"),
    "micro_batches": (splits.micro_batches, "micro-batches of any sizes"),
    "ranks": (splits.ranks, "ranks of different lengths, one of them with padding alone"),
    "left_padding": (splits.left_padded, "sequences padded on the left"),
    "removed_masked_slots": (splits.without_masked_slots, "masked slots taken out"),
    "doubled_masked_slots": (splits.doubled_masked_slots, "a masked slot before every slot"),
}
_CUT_BY_TOKEN = CUT_BY_SEQUENCE | {
    "packing": (splits.packed, "real tokens packed into rows"),
    "context_shards": (
        splits.context_shards,
        "sequences cut into pieces, as context parallel does",
    ),
}


@st.composite
def _batch(draw: st.DrawFn, fmt: Format, function: str) -> Case:
    """A dyadic batch: 2^k sequences, whose lengths are powers of two and add up to one.

    One batch in four has 256 sequences; one in two has a sequence more, without a real token.
    """
    count = draw(st.sampled_from((4, 8, 16, 256)))
    length = draw(st.sampled_from((2, 4))) * count
    lengths = [length]
    while len(lengths) < count:
        place = draw(st.integers(0, 63)) % len(lengths) if count < 256 else len(lengths) % 7
        longest = max(range(len(lengths)), key=lambda i: (lengths[i] > 1, -abs(i - place)))
        lengths[longest] //= 2
        lengths.append(lengths[longest])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16 - 1)))
    lengths += [0] * draw(st.integers(0, 1))
    mask = _mask(lengths, generator, holes=draw(st.booleans()))
    return Case(Inputs.of(_CONTENTS[function](mask, fmt, generator, draw)))


def _mask(lengths: list[int], generator: torch.Generator, holes: bool) -> Tensor:
    """Rows with that many real tokens, at the left or anywhere, and a last column of padding."""
    width = max(lengths) + (2 if holes else 0)
    order = torch.rand(len(lengths), width, generator=generator) if holes else torch.zeros(1, 1)
    rank = (order.argsort(1) if holes else torch.arange(width)[None]).expand(len(lengths), width)
    real = rank < torch.tensor(lengths)[:, None]
    return torch.nn.functional.pad(real, (0, 1))


def _integers(low: int, high: int, shape: Any, generator: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=generator).double()


def _denominator(mask: Tensor, of_sequences: bool, draw: st.DrawFn) -> float:
    """The count of the whole batch, or four times it: this batch is a part of a larger one."""
    count = int(mask.any(1).sum() if of_sequences else mask.sum())
    return float(count * draw(st.sampled_from((1, 4))))


def _values(mask: Tensor, fmt: Format, generator: torch.Generator, draw: st.DrawFn) -> Arguments:
    mode = draw(st.sampled_from(("token_mean", "sequence_mean", "sequence_mean_token_sum")))
    return {
        "values": _integers(-8, 8, mask.shape, generator).to(fmt.dtype),
        "mask": mask,
        "mode": mode,
        "denominator": _denominator(mask, mode != "token_mean", draw),
    }


def _token_values(
    mask: Tensor, fmt: Format, generator: torch.Generator, draw: st.DrawFn
) -> Arguments:
    inputs = _values(mask, fmt, generator, draw)
    modes = ("token_mean", "constant", "sequence_mean_token_sum")
    return inputs | {"mode": draw(st.sampled_from(modes))}


def _clipped(
    mask: Tensor,
    fmt: Format,
    generator: torch.Generator,
    draw: st.DrawFn,
    *,
    of_sequences: bool = False,
    options: Mapping[str, float] = _CLIPS,
) -> Arguments:
    """Log-ratios of 0, or so far with the advantage's sign that the clip counts."""
    shape = mask.shape[:1] if of_sequences else mask.shape
    advantages = _integers(-6, 6, shape, generator)
    d = _FAR * advantages.sign() * _integers(0, 1, shape, generator)
    logprobs = -_integers(1, 12, mask.shape, generator) / 4 - _FAR
    return {
        "logprobs": logprobs.to(fmt.dtype),
        "old_logprobs": (logprobs - (d[:, None] if of_sequences else d)).to(fmt.dtype),
        "advantages": advantages.to(fmt.dtype),
        "mask": mask,
        **options,
        "denominator": _denominator(mask, of_sequences, draw),
    }


def _errors(mask: Tensor, fmt: Format, generator: torch.Generator, draw: st.DrawFn) -> Arguments:
    values = _integers(-6, 6, mask.shape, generator)
    moves = 4 * _integers(-1, 1, mask.shape, generator)
    returns = _integers(-6, 6, mask.shape, generator)
    tensors = {"values": values, "old_values": values + moves, "returns": returns}
    return {
        **{name: x.to(fmt.dtype) for name, x in tensors.items()},
        "mask": mask,
        "clip_range": 0.5,
        "denominator": _denominator(mask, False, draw),
    }


_CONTENTS: dict[str, Callable[..., Arguments]] = {
    "aggregate": _values,
    "aggregate by token": _token_values,
    "policy_loss_with_denominator": partial(_clipped, options={"clip_range": 0.5}),
    "value_loss_with_denominator": _errors,
    "gspo_loss_with_denominator": partial(_clipped, of_sequences=True),
    "cispo_loss_with_denominator": _clipped,
    "dapo_loss_with_denominator": partial(_clipped, options=_CLIPS | {"dual_clip": 2.0}),
}


def _split(cut: splits.Cut, what: str, name: str, function: Function, inputs: Inputs) -> int:
    """The parts' losses add up to the loss of the whole, and their gradients to its gradient."""
    mask, compared = inputs["mask"], 0
    parts, wanted = cut(mask), truths(name, inputs)
    want, up = float(wanted["result"].want), float(upstream(torch.Size()))
    for filler in _FILLERS if cut in (splits.ranks, splits.doubled_masked_slots) else (0.0,):
        given = [splits.part_of(inputs, part, filler) for part in parts]
        got = [call(name, function, one) for one in given]
        total = sum(float(one["result"]) for one in got)
        if total != want and torch.tensor(total).float() != torch.tensor(want).float():
            defects = splits.known_defects(
                _terms(name, inputs),
                mask,
                parts,
                inputs.number("denominator"),
                of_sequences=_counts_sequences(name, inputs),
            )
            which = splits.name_of(total, want, defects)
            raise ConformanceFailure(_message(name, what, which, len(parts), total, want), inputs)
        gradient = splits.put_back([one["gradient"] for one in got], parts, mask) / up
        exact = wanted["gradient"].want / up
        if not torch.equal(gradient.float(), exact.float()):
            raise ConformanceFailure(_of_gradient(name, what, gradient, exact, parts), inputs)
        compared += 1 + mask.numel()
    return compared


def _message(name: str, what: str, which: str, parts: int, got: float, want: float) -> str:
    cause = "" if parts == 1 else f" of {parts} parts"
    return (
        f"{name}: {which}\n  {what}: the sum{cause} is {got:.9g}, the loss of the whole batch is "
        f"{want:.9g}; every part was given the denominator of the whole"
    )


def _of_gradient(name: str, what: str, got: Tensor, want: Tensor, parts: list[splits.Part]) -> str:
    worst = int((got - want).abs().nan_to_num(nan=torch.inf).argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), got.shape)]
    g, w = float(got.flatten()[worst]), float(want.flatten()[worst])
    cause = splits.defect_of_gradient(got, want, parts)
    return f"{name}: the loss is right, {cause}\n  {what}: at {index} got {g:.9g}, want {w:.9g}"


def _counts_sequences(name: str, inputs: Inputs) -> bool:
    modes = ("sequence_mean", "sequence_mean_token_sum")
    return base(name) == "gspo_loss" or inputs.word("mode") in modes


def _terms(name: str, inputs: Inputs) -> Tensor:
    """[B, T] what every token adds to the sum that the denominator divides."""
    mask, function = inputs["mask"], base(name)
    if function == "aggregate":
        lengths = mask.sum(1, keepdim=True).clamp(min=1)
        each = lengths if inputs.word("mode") == "sequence_mean" else torch.ones_like(lengths)
        return inputs["values"].double() / each
    plain = Inputs(inputs.floating(), inputs.options).each(Tensor.double).without("denominator")
    terms = torch.zeros(mask.shape, dtype=torch.float64)
    for b, t in mask.nonzero().tolist():
        alone = torch.zeros_like(mask)
        alone[b, t] = True
        weight = int(mask[b].sum()) if function == "gspo_loss" else 1
        terms[b, t] = of_oracle(function, plain | {"mask": alone}) / weight
    return terms


def _split_properties(name: str) -> dict[str, Property]:
    by_token = name not in ("aggregate", "gspo_loss_with_denominator")
    cuts = _CUT_BY_TOKEN if by_token or name == "aggregate" else CUT_BY_SEQUENCE
    return {
        f"any_split_{kind}": Property(
            f"{what}: the parts' losses and gradients add up to those of the whole batch",
            partial(_split, cut, what),
            cost=0.2,
            formats=("fp32", "bf16"),
            cases=partial(_cases, name, kind),
        )
        for kind, (cut, what) in cuts.items()
    }


def _cases(name: str, kind: str, fmt: Format) -> SearchStrategy[Case]:
    across = kind in ("packing", "context_shards") and name == "aggregate"
    return _batch(fmt, "aggregate by token" if across else name)


_SPLIT = tuple(name for name in _CONTENTS if " " not in name)
SPLIT_PROPERTIES = {name: _split_properties(name) for name in _SPLIT}
