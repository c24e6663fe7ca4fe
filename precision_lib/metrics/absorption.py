"""Whether the step of an optimizer survives the format in which a weight is stored.

The hazard. A weight of 0.05 in bf16 has neighbours 2.4e-4 away. A step of 1e-6 rounds back to the
weight, in every step again: nothing adds up. Seen from outside that is a lower learning rate. The
share of weights that move does not show it: a bf16 copy of FP32 masters hardly moves either, and
loses nothing, since its masters remember.

Laws, written down before anything was measured. w is a weight, s its step, u the distance of w from
the next number of the format (``formats.ulp``):

1. *absorption*: w is stored in the format, so w is on its grid. The step survives if |s| is larger
   than half the distance to the neighbour on its side, and is lost if it is smaller. That distance
   is u, or u/2 from a power of two towards 0.
2. *nearest*: what is stored is at most u/2 from w + s, with u of what is stored.
3. *copy*: w is an FP32 master whose rounded copy is looked at. Its place between two numbers of the
   format is as good as random, so the copy moves with probability min(1, |s| / u). A master on the
   grid follows law 1; one half-way between two numbers falls to either side.

Laws 1 and 2 say what happens to each weight, so one exception is one too many. A step that FP32
cannot tell from a tie is left out and counted. Law 3 is one of probabilities: the number of copies
that move has mean sum(p) and variance sum(p (1 - p)).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from precision_lib.formats import FORMATS, Format, format_of, ulp

FP32 = FORMATS["fp32"]
#: Weights looked at in one go: in float64 a large matrix would take gigabytes.
_PIECE = 2**20


@dataclass(frozen=True)
class Counts:
    """Sums over weights; they add up over tensors and steps.

    Attributes:
        n: weights that a law says something of.
        undecided: weights left out: FP32 cannot tell their step from a tie.
        moved: of n, those whose stored value changed.
        exceptions: of n, those that contradict law 1.
        off_nearest: of n, those that contradict law 2.
    """

    n: int = 0
    undecided: int = 0
    moved: int = 0
    exceptions: int = 0
    off_nearest: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class CopyCounts:
    """Law 3: copies that moved, their expected number and its variance, of n."""

    n: int = 0
    moved: int = 0
    expected: float = 0.0
    variance: float = 0.0

    def __add__(self, other: "CopyCounts") -> "CopyCounts":
        return CopyCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def z(self) -> float | None:
        """Standard errors by which the law is missed; None where nothing is left to chance."""
        return (self.moved - self.expected) / self.variance**0.5 if self.variance > 0 else None


def half_distance(weights: Tensor, steps: Tensor, fmt: Format) -> Tensor:
    """Half the distance from each stored weight to the neighbour on the side of its step, float64.

    Args:
        weights: any shape, on the grid of ``fmt``, finite. steps: the same shape.
    """
    step_of_format = ulp(weights, fmt)
    significand, _ = torch.frexp(weights.double())
    power = (significand.abs() == 0.5) & (weights.double().abs() > fmt.smallest_normal)
    inwards = torch.signbit(steps) != torch.signbit(weights)
    return torch.where(power & inwards, step_of_format / 4, step_of_format / 2)


def survival(weights: Tensor, steps: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """(the step survives, FP32 cannot tell) of law 1, bool; arguments as :func:`half_distance`."""
    size, half = steps.double().abs(), half_distance(weights, steps, fmt)
    return size > half, (size - half).abs() <= _blur(weights, fmt)


def _blur(weights: Tensor, fmt: Format) -> Tensor | float:
    """How far the FP32 sum of a weight and a small step may be off before it is rounded again."""
    return 0.0 if fmt == FP32 else weights.double().abs() * (2 * FP32.unit_roundoff)


def stored_counts(before: Tensor, after: Tensor, steps: Tensor) -> Counts:
    """Laws 1 and 2 of one step of stored weights.

    Args:
        before, after: any shape, in the format that they are stored in.
        steps: FP32, the same shape.
    """
    fmt, total = format_of(before.dtype), Counts()
    for old, new, step in _pieces(before, after, steps):
        survives, undecided = survival(old, step, fmt)
        moved, told = new != old, ~undecided
        error = (new.double() - (old.double() + step.double())).abs()
        limit = ulp(new, fmt) / 2 + _blur(new, fmt)
        total += Counts(
            n=int(told.sum()),
            undecided=int(undecided.sum()),
            moved=int((moved & told).sum()),
            exceptions=int(((moved != survives) & told).sum()),
            off_nearest=int((~(error <= limit) & told).sum()),
        )
    return total


def copy_counts(before: Tensor, after: Tensor, steps: Tensor, fmt: Format) -> CopyCounts:
    """Law 3 of one step of FP32 masters whose copies are in ``fmt``.

    Args:
        before, after: FP32 masters, any shape. steps: FP32, the same shape.
    """
    total = CopyCounts()
    for old, new, step in _pieces(before, after, steps):
        copy = old.to(fmt.dtype)
        p = (step.double().abs() / ulp(old, fmt)).clamp(max=1.0)
        on_grid = copy.float() == old
        mirrored = old + (old - copy.float())
        halfway = (mirrored.to(fmt.dtype).float() == mirrored) & ~on_grid & (step != 0)
        p = torch.where(halfway, p.clamp(min=0.5), p)
        p = torch.where(on_grid, survival(old, step, fmt)[0].double(), p)
        moved = new.to(fmt.dtype) != copy
        variance = float((p * (1 - p)).sum())
        total += CopyCounts(old.numel(), int(moved.sum()), float(p.sum()), variance)
    return total


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(x.detach().flatten().split(_PIECE) for x in tensors), strict=True)
