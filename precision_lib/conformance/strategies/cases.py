"""One test case, and the named region of input that it comes from.

A case prints its small tensors as exact hex floats, in a text that ``written_case`` reads back,
and a large one by its recipe: rounded decimals would lose the last bit, and the failure.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from precision_lib.conformance.inputs import Argument, Inputs, Option
from precision_lib.formats import FORMATS, Format, format_of

#: Names of the formats in which a core is given its input.
INPUT_FORMATS = ("bf16", "fp16", "fp32")
#: Tensors up to this many elements are printed in full.
PRINTED_IN_FULL = 64
#: How many values of a larger tensor are printed.
PRINTED_OF_LARGE = 8


#: Who meets such an input: a training run; its edge; nobody, because only the format's range ends
#: there. A failure of the last kind is counted apart and fails a run with ``--strict`` alone.
SEVERITIES = ("training", "edge", "range")


@dataclass(frozen=True, eq=False)
class Embedded:
    """The small case inside a large one: the truth of the large one follows from its truth.

    Attributes:
        inputs: of the small case, [1, n] slots, or n sequences.
        rows: int64, which small slot, or sequence, each of the large case repeats. Where n slots
            are a multiple of five, the upstream weights repeat along.
        shape: (B, T) of the large case.
        columns: [v] int64, where the entries of a small row of logits stand.
        width: V of the large case.
        by_sequence: whether ``rows`` counts sequences.
    """

    inputs: Inputs
    rows: Tensor
    shape: tuple[int, int]
    columns: Tensor | None = None
    width: int = 0
    by_sequence: bool = False

    def spread(self, x: Tensor, filler: float = 0.0) -> Tensor:
        """A small input, result or gradient as the large case has it."""
        if self.by_sequence:
            return x[self.rows]
        rows = x.reshape(-1, *x.shape[2:])[self.rows]
        if x.dim() > 2 and self.columns is not None:
            wide = rows.new_full((len(rows), self.width), filler)
            wide[:, self.columns] = rows
            rows = wide
        return rows.reshape(*self.shape, *rows.shape[1:])


@dataclass(frozen=True, eq=False)
class Case:
    """The input of one call.

    Attributes:
        inputs: the keyword arguments of the function, exactly. The tensors are the exact numbers of
            the test: the truth is that of the rounded input.
        recipe: what was drawn to make them, by name; printed when a tensor is too large to be.
        embedded: the small case that the truth comes from; None where it is that of ``inputs``.
    """

    inputs: Inputs
    recipe: str = ""
    embedded: Embedded | None = None

    def __repr__(self) -> str:
        arguments = self.inputs.keywords()
        printed = [f"{name!r}: {_printed(value)}" for name, value in arguments.items()]
        text = f"inputs={{{', '.join(printed)}}}"
        whole = all(_is_small(value) for value in arguments.values())
        return f"Case({text})" if whole else f"Case({text}, recipe={self.recipe!r})"


def within(case: Case, taken: Mapping[str, Sequence[Option]]) -> Case:
    """The case with each argument that the target does not take replaced by its first value.

    Args:
        taken: argument to the values that the function takes.
    """
    options = case.inputs.options
    changed = {k: v[0] for k, v in taken.items() if k in options and options[k] not in v}
    if not changed:
        return case
    small = case.embedded
    return Case(
        case.inputs | changed,
        " ".join([case.recipe, *(f"{k}={v}" for k, v in changed.items())]).strip(),
        small and replace(small, inputs=small.inputs | changed),
    )


@dataclass(frozen=True)
class Region:
    """A named part of the input space of one function.

    Attributes:
        meaning: what is hard here, in one sentence.
        cases: the strategy that draws a :class:`Case` in a format.
        cost: share of the normal number of examples to run.
        formats: names of the formats in which the region exists.
        severity: one of :data:`SEVERITIES`.
        every_way: each case is also called without a gradient and with sliced memory.
    """

    meaning: str
    cases: Callable[[Format], SearchStrategy[Case]]
    cost: float = 1.0
    formats: tuple[str, ...] = INPUT_FORMATS
    severity: str = "training"
    every_way: bool = False


def hex_tensor(format_name: str, shape: Sequence[int], values: str) -> Tensor:
    """The tensor that a case printed: hex floats, ``nan`` and ``inf``, separated by blanks."""
    exact = torch.tensor([float.fromhex(v) for v in values.split()], dtype=torch.float64)
    return exact.to(FORMATS[format_name].dtype).reshape(tuple(shape))


def right_padded(lengths: Sequence[int], width: int) -> Tensor:
    """Bool mask [len(lengths), width] whose row b starts with ``lengths[b]`` real tokens."""
    return torch.arange(width) < torch.tensor(lengths, dtype=torch.int64)[:, None]


def _is_small(value: Argument) -> bool:
    return (
        not isinstance(value, Tensor)
        or value.dtype == torch.bool
        or value.numel() <= PRINTED_IN_FULL
    )


def _hex(value: float) -> str:
    return re.sub(r"\.?0+p", "p", value.hex())


def _printed(value: Argument) -> str:
    """The value as an expression; a large tensor as a note between angle brackets."""
    if not isinstance(value, Tensor):
        return repr(value)
    if value.dtype == torch.bool:
        lengths = value.sum(-1).tolist()
        if torch.equal(value, right_padded(lengths, value.shape[-1])):
            return f"right_padded({lengths}, {value.shape[-1]})"
        return f"torch.tensor({value.tolist()})"
    if not value.is_floating_point():
        if _is_small(value):
            return f"torch.tensor({value.tolist()})"
        return f"<{value.dtype} {tuple(value.shape)}>"
    name, shape = format_of(value.dtype).name, tuple(value.shape)
    first = value.flatten()[: PRINTED_IN_FULL if _is_small(value) else PRINTED_OF_LARGE]
    numbers = " ".join(_hex(v) for v in first.double().tolist())
    if _is_small(value):
        return f"hex_tensor({name!r}, {shape}, {numbers!r})"
    return f"<{name} {shape}: {numbers} ...>"
