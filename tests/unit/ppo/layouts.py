"""What the tests of the core share: bits, memory layouts, and the formats a function accepts.

The hazard. ``torch.equal`` takes 0 and -0 for the same and never two NaN; a tensor that is not
contiguous goes through other kernels, in another order, and some calls refuse it.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Results = Sequence[Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal FP32 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged(*lengths: int, width: int | None = None) -> Tensor:
    """A right-padded mask [B, T] with these numbers of real tokens."""
    return torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]


def everything(*shape: int) -> Tensor:
    """A mask of real tokens only."""
    return torch.ones(*shape, dtype=torch.bool)


def _bits(x: Tensor) -> Tensor:
    return x.detach().view(_BITS[x.element_size()]) if x.is_floating_point() else x


def same_bits(*, got: Tensor, want: Tensor) -> None:
    """Fail unless format, shape and every bit agree, and there is something to compare."""
    __tracebackhide__ = True
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert got.numel() > 0
    differ = _bits(got) != _bits(want)
    assert not differ.any(), (
        f"{int(differ.sum())} of {got.numel()} differ, the first: got {got[differ][0]}, "
        f"want {want[differ][0]}"
    )


def all_same_bits(*, got: Results, want: Results) -> None:
    """:func:`same_bits` for several results."""
    __tracebackhide__ = True
    assert len(got) == len(want) > 0
    for one, other in zip(got, want, strict=True):
        same_bits(got=one, want=other)


def within(*, got: Tensor, want: Tensor, limit: Tensor | float) -> None:
    """Fail unless |got - want| <= limit at every element; NaN is never within."""
    __tracebackhide__ = True
    assert got.shape == want.shape
    assert got.numel() > 0
    error = (got.detach().double() - want.double()).abs()
    limits = torch.as_tensor(limit, dtype=torch.float64).expand(error.shape)
    beyond = ~(error <= limits)
    assert not beyond.any(), (
        f"{int(beyond.sum())} of {got.numel()} beyond the limit, the first: got "
        f"{got[beyond][0]}, want {want[beyond][0]}, limit {limits[beyond][0]}"
    )


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _last_dimension_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def _every_other(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


#: Layouts that a caller may have. ``expanded`` repeats the first sequence.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": _transposed,
    "last_dimension_first": _last_dimension_first,
    "every_other_element": _every_other,
    "expanded": _expanded,
}


def layout_does_not_matter(
    layout: str, function: Callable[..., Results], *inputs: Tensor, contiguous: Sequence[int] = ()
) -> None:
    """The same bits from inputs in ``layout`` as from their contiguous copies, none modified.

    Args:
        layout: a key of :data:`LAYOUTS`.
        function: takes the inputs, returns results.
        contiguous: positions of inputs that stay as they are, because they have no such layout.
    """
    __tracebackhide__ = True
    change = LAYOUTS[layout]
    odd = [x if i in contiguous else change(x) for i, x in enumerate(inputs)]
    assert not all(x.is_contiguous() for x in odd)
    kept = [x.clone() for x in odd]
    results = function(*odd)
    all_same_bits(got=[_bits(x) for x in odd], want=[_bits(x) for x in kept])
    all_same_bits(got=results, want=function(*(x.contiguous() for x in kept)))


#: Formats of two inputs, and the format that FP32 or wider makes of them.
DEFAULT_FORMATS = [
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.float16, torch.float16, torch.float32),
    (torch.float32, torch.float32, torch.float32),
    (torch.float64, torch.float64, torch.float64),
    (torch.bfloat16, torch.float16, torch.float32),
    (torch.float32, torch.bfloat16, torch.float32),
    (torch.float16, torch.float64, torch.float64),
]

#: Runs a test in each format that a core is called with.
FLOATS = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
