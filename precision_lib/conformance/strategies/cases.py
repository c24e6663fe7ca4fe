"""One test case, and the named region of input that it comes from.

A case prints its small tensors as exact hex floats, in an expression that evaluates to the same
case, and a large one by its recipe: rounded decimals would lose the last bit, and the failure.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from precision_lib.formats import FORMATS, Format, format_of

#: Names of the formats in which a core is given its input.
INPUT_FORMATS = ("bf16", "fp16", "fp32")
#: Tensors up to this many elements are printed in full.
PRINTED_IN_FULL = 64
#: How many values of a larger tensor are printed.
PRINTED_OF_LARGE = 8


@dataclass(frozen=True, eq=False)
class Case:
    """The input of one call.

    Attributes:
        inputs: the keyword arguments of the function, exactly: tensors of the format's dtype,
            int64 tokens, bool masks, floats, strings. The tensors are the exact numbers of the
            test: the truth is that of the rounded input.
        recipe: what was drawn to make them, by name; printed when a tensor is too large to be.
    """

    inputs: dict[str, Any]
    recipe: str = ""

    def __repr__(self) -> str:
        printed = [f"{name!r}: {_printed(value)}" for name, value in self.inputs.items()]
        text = f"inputs={{{', '.join(printed)}}}"
        whole = all(_is_small(value) for value in self.inputs.values())
        return f"Case({text})" if whole else f"Case({text}, recipe={self.recipe!r})"


@dataclass(frozen=True)
class Region:
    """A named part of the input space of one function.

    Attributes:
        meaning: what is hard here, in one sentence.
        cases: the strategy that draws a :class:`Case` in a format.
        cost: share of the normal number of examples to run.
        formats: names of the formats in which the region exists.
    """

    meaning: str
    cases: Callable[[Format], SearchStrategy[Case]]
    cost: float = 1.0
    formats: tuple[str, ...] = INPUT_FORMATS


def hex_tensor(format_name: str, shape: Sequence[int], values: str) -> Tensor:
    """The tensor that a case printed: hex floats, ``nan`` and ``inf``, separated by blanks."""
    exact = torch.tensor([float.fromhex(v) for v in values.split()], dtype=torch.float64)
    return exact.to(FORMATS[format_name].dtype).reshape(tuple(shape))


def right_padded(lengths: Sequence[int], width: int) -> Tensor:
    """Bool mask [len(lengths), width] whose row b starts with ``lengths[b]`` real tokens."""
    return torch.arange(width) < torch.tensor(lengths, dtype=torch.int64)[:, None]


def _is_small(value: object) -> bool:
    return (
        not isinstance(value, Tensor)
        or value.dtype == torch.bool
        or value.numel() <= PRINTED_IN_FULL
    )


def _hex(value: float) -> str:
    return re.sub(r"\.?0+p", "p", value.hex())


def _printed(value: object) -> str:
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
