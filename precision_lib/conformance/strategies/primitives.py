"""Draws that Hypothesis can shrink and climb, for tensors too large to be drawn number by number.

Drawing element by element is slow (90 s for 4,096 16-bit codes), a default fill gives six distinct
values, and a seed alone neither shrinks nor lets ``hypothesis.target`` climb. So a vector here is a
seeded background, which seed 0 turns into zeros, plus explicit integer coordinates on its first
elements, times a drawn power of two; a few special values are planted at drawn positions.

Everything is float64 until it is rounded to the format, once, by the correctly rounding
:func:`precision_lib.formats.round_to`; values that a region moves by units in the last place stay
on the grid, where rounding again is the identity. No global random generator is used.

B sequences, T tokens, n real tokens. ``mask[b, t]`` is True for a real token.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray
from torch import Tensor

from precision_lib.conformance.inputs import Arguments, Inputs
from precision_lib.conformance.strategies.cases import INPUT_FORMATS, Case, Region
from precision_lib.formats import Format, round_to, ulp

Vector = NDArray[np.float64]
#: Of each of two rows; bf16 counts to 256.
LONG_LENGTHS = (300, 1000, 2049)
MaskKind = Literal["mostly_full", "ragged", "padded", "single", "long"]
Choice = TypeVar("Choice")

MAX_SEQUENCES = 3
MAX_TOKENS = 8
#: How many elements of a vector are drawn explicitly, their unit and their range. As many draws
#: in every shape: Hypothesis prefers fewer draws to smaller ones, so a list of any length would
#: lose to a lucky seed, and a shape that changes the number of draws would not shrink.
COORDINATES = 8
STEPS_PER_UNIT = 64
FARTHEST = 128
#: Indices drawn explicitly, and the first positions among which specials are planted.
INDICES = 4
PLANTED_AMONG = 64
#: Specials planted into ordinary values: zeros of both signs, non-dyadic values, an outlier.
SPECIALS = (0.0, -0.0, 1.0, -1.0, 0.1, -1 / 3, 10.0, -100.0)
#: What a padded slot holds where it is finite: TRL's mark for an invalid log-prob is 1.
PADDING = (0.0, 1.0, -7.0, 100.0)
#: Formats that numpy has: it rounds float64 to them once, as ``round_to`` does, in a tenth of the
#: time.
_IN_NUMPY = {"fp16": np.float16, "fp32": np.float32}
NONFINITE = (np.nan, np.inf, -np.inf)


@cache
def _integers(low: int, high: int) -> SearchStrategy[int]:
    return st.integers(low, high)


@cache
def _choices(options: tuple[Any, ...]) -> SearchStrategy[Any]:
    return st.sampled_from(options)


@cache
def _tuples(low: int, high: int, length: int) -> SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(low, high)] * length)


@cache
def _lists(high: int, shortest: int, longest: int) -> SearchStrategy[list[int]]:
    return st.lists(st.integers(0, high), min_size=shortest, max_size=longest)


class Draws:
    """The draws of one case; each is remembered by its name, as the recipe of the case."""

    def __init__(self, draw: st.DrawFn, fmt: Format) -> None:
        self.fmt = fmt
        self._draw = draw
        self._drawn: dict[str, object] = {}
        self._generator: np.random.Generator | None = None

    @property
    def recipe(self) -> str:
        """``name=value`` of every draw, in the order of drawing."""
        return " ".join(f"{name}={value}" for name, value in self._drawn.items())

    def _remember(self, name: str, value: Choice) -> Choice:
        while name in self._drawn:
            name += "'"
        self._drawn[name] = value
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]; shrinks towards 0."""
        return self._remember(name, self._draw(_integers(low, high)))

    def choice(self, name: str, options: tuple[Choice, ...]) -> Choice:
        """One of the options; shrinks towards the first."""
        chosen: Choice = self._draw(_choices(options))
        return self._remember(name, chosen)

    def sign(self, name: str) -> float:
        """1 or -1."""
        return self.choice(name, (1.0, -1.0))

    def _background(self) -> np.random.Generator | None:
        """The seeded generator of this case; None for seed 0, which means a background of 0."""
        if "seed" not in self._drawn:
            seed = self.integer("seed", 0, 2**16 - 1)
            self._generator = np.random.Generator(np.random.PCG64(seed)) if seed else None
        return self._generator

    def normal(self, n: int) -> Vector:
        """[n] standard normal values from the seed."""
        generator = self._background()
        return np.zeros(n) if generator is None else generator.standard_normal(n)

    def units(self, name: str, n: int, coordinates: int = COORDINATES) -> Vector:
        """[n] values of spread 1: :meth:`normal` plus drawn coordinates on the first ones."""
        x = self.normal(n)
        drawn = self._remember(name, self._draw(_tuples(-FARTHEST, FARTHEST, coordinates)))
        x[:coordinates] += np.array(drawn[:n], dtype=np.float64) / STEPS_PER_UNIT
        return x

    def bounded(self, name: str, n: int, coordinates: int = COORDINATES) -> Vector:
        """[n] values in [-1, 1], one of them +-1: :meth:`units` over their largest magnitude."""
        x = self.units(name, n, coordinates)
        largest = float(np.abs(x).max())
        if largest == 0:
            x[0] = largest = 1.0
        return x / largest

    def indices(self, name: str, n: int, size: int) -> NDArray[np.int64]:
        """[n] integers in [0, size): from the seed, the first few drawn explicitly."""
        generator = self._background()
        x = np.zeros(n, np.int64) if generator is None else generator.integers(0, size, n)
        x[:INDICES] = self._remember(name, self._draw(_tuples(0, size - 1, INDICES)))[:n]
        return x

    def planted(
        self, x: Vector, specials: tuple[float, ...] = SPECIALS, at_least: int = 0
    ) -> Vector:
        """``x`` with ``at_least`` and up to six of the specials at drawn positions."""
        count = len(specials)  # position and special in one integer: half the draws
        drawn = self._draw(_lists(PLANTED_AMONG * count - 1, at_least, 6))
        for planting in self._remember("planted", drawn):
            x[planting // count % x.size] = specials[planting % count]
        return x

    def rounded(self, x: Vector) -> Vector:
        """On the grid of the format; finite values that exceed it become its largest."""
        largest = self.fmt.largest
        within = np.where(np.isinf(x), x, np.clip(x, -largest, largest))
        if self.fmt.name in _IN_NUMPY:
            return within.astype(_IN_NUMPY[self.fmt.name]).astype(np.float64)
        rounded: Vector = round_to(torch.from_numpy(within), self.fmt).numpy()
        return rounded

    def ulps(self, x: Vector | float) -> Vector:
        """The step of the format at each value, away from zero."""
        steps: Vector = ulp(torch.as_tensor(x, dtype=torch.float64), self.fmt).numpy()
        return steps

    def tensor(self, x: Vector) -> Tensor:
        """The rounded values in the dtype of the format."""
        return torch.from_numpy(self.rounded(x)).to(self.fmt.dtype)

    def shape(self, tokens: int = MAX_TOKENS) -> tuple[int, int]:
        """(B, T) without a mask."""
        return self.integer("B", 1, MAX_SEQUENCES), self.integer("T", 1, tokens)

    def mask(self, kind: MaskKind = "mostly_full", at_least: int = 1) -> NDArray[np.bool_]:
        """Bool [B, T], right-padded, with ``at_least`` real tokens overall.

        ``mostly_full``: all real, in one case out of four with padding. ``ragged``: lengths from 0
        to T. ``padded``: at least one slot is masked. ``single``: one real token overall. ``long``:
        more real tokens than bf16 can count.
        """
        if kind == "long":
            tokens = self.choice("T", LONG_LENGTHS)
            lengths = [tokens - self.integer("missing", 0, tokens // 8) for _ in range(2)]
            return _right_padded(lengths, tokens)
        if kind == "single":
            sequences, tokens = self.integer("B", 1, 2), self.integer("T", 1, 3)
            row = self.integer("row", 0, sequences - 1)
            return _right_padded([int(b == row) for b in range(sequences)], tokens)
        fewest = max(at_least, 1) + (kind == "padded")
        sequences = self.integer("B", 1, MAX_SEQUENCES)
        tokens = self.integer("T", fewest, MAX_TOKENS)
        if kind == "mostly_full" and not self.choice("padding", (False, False, False, True)):
            return np.ones((sequences, tokens), np.bool_)
        missing = tokens if kind == "ragged" else tokens - 1
        lengths = [tokens - self.integer("missing", 0, missing) for _ in range(sequences)]
        if kind == "padded" or sum(lengths) < at_least:
            lengths[0] = min(max(lengths[0], at_least), tokens - (kind == "padded"))
        return _right_padded(lengths, tokens)

    def scattered(self, x: Vector, mask: NDArray[np.bool_], *, nonfinite: bool = False) -> Tensor:
        """[B, T] in the format: ``x`` [n] in the real slots, padding in the masked ones.

        Args:
            x: on the grid of the format.
            nonfinite: padding is NaN, inf and -inf in turn, starting with a drawn one; otherwise
                one drawn finite value.
        """
        values = np.zeros(mask.shape)
        values[mask] = x
        count = mask.size - x.size
        if count and nonfinite:
            first = self.integer("first_nonfinite", 0, len(NONFINITE) - 1)
            values[~mask] = np.resize(np.roll(NONFINITE, -first), count)
        elif count:
            values[~mask] = self.choice("padded_with", PADDING)
        return torch.from_numpy(values).to(self.fmt.dtype)


def _right_padded(lengths: Sequence[int], tokens: int) -> NDArray[np.bool_]:
    return np.arange(tokens) < np.array(lengths)[:, None]


Build = Callable[[Draws], Arguments]


def region(
    meaning: str,
    build: Build,
    *,
    cost: float = 1.0,
    formats: tuple[str, ...] = INPUT_FORMATS,
) -> Region:
    """A region whose cases have the inputs that ``build`` makes from the draws."""

    @st.composite
    def cases(draw: st.DrawFn, fmt: Format) -> Case:
        draws = Draws(draw, fmt)
        return Case(Inputs.of(build(draws)), draws.recipe)

    return Region(meaning, cases, cost, formats)
