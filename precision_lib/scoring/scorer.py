"""Forwards of one checkpoint over fixed tokens: each of (weights, run) once, and kept.

The hazard. Two forwards that differ in batch shape, padding or order differ in their last bits,
and near the reference those bits are as large as the signal. So everything that is compared goes
through one function in the same micro-batches. And a forward that is asked for twice may be asked
for once by mistake: each has a random seed of its own, so that a dropout left on shows as a
difference.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.models.placement import computes_on_cpu
from precision_lib.runtime import deterministic
from precision_lib.scoring.micro import FIRST

GOLDEN, EXACT = "fp32", "fp64"
Scored = TypeVar("Scored")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Weights:
    """The parameters of a forward.

    Attributes:
        owner: whose they are. Equal weights of another owner are a forward of their own, so that
            a difference of exactly zero is measured.
        fmt: their format.
        scale: how far they are moved along the direction; None for the checkpoint's own.
    """

    owner: str
    fmt: str
    scale: float | None = None


@dataclass
class Scorer(Generic[Scored]):
    """Scores fixed tokens under any weights of one checkpoint.

    Attributes:
        original: the FP32 model, unchanged.
        score: what a forward gives, from (model, its weights, run).
        direction: parameter name to the change that a scale of 1 is.
        progress: called after each forward.
    """

    original: Any
    score: Callable[[Any, Weights, str], Scored]
    direction: dict[str, Tensor] | None = None
    progress: Callable[[], Any] = lambda: None
    _kept: dict[tuple[Weights, str], Scored] = field(default_factory=dict)
    _copies: dict[int, Any] = field(default_factory=dict)

    def scored(self, weights: Weights, run: str = FIRST) -> Scored:
        """The forward of ``weights``; ``run`` is ``FIRST``, ``AGAIN`` or ``REBATCHED``."""
        key = (weights, run)
        if key not in self._kept:
            self._kept[key] = self._forward(self.score, weights, run)
        return self._kept[key]

    def scored_with(self, score: Callable[[Any, Weights, str], Scored], weights: Weights) -> None:
        """Run the first forward of ``weights`` by ``score``, which does more than ``self.score``.

        Its result is kept unless there is one.
        """
        self._kept.setdefault((weights, FIRST), self._forward(score, weights, FIRST))

    def is_scored(self, weights: Weights) -> bool:
        """Whether the first forward of ``weights`` is there."""
        return (weights, FIRST) in self._kept

    def _forward(
        self, score: Callable[[Any, Weights, str], Scored], weights: Weights, run: str
    ) -> Scored:
        model = self.model(weights)
        seed, native = zlib.crc32(repr((weights, run)).encode()), not computes_on_cpu(model)
        with deterministic(seed, native_products=native):
            scored = score(model, weights, run)
        self.progress()
        return scored

    def pair(self, first: Weights, second: Weights, work: Callable[[Any, Any], Result]) -> Result:
        """``work`` of two models at once; not kept."""
        models = self.model(first), self.model(second, copy=1)
        with deterministic(native_products=not computes_on_cpu(*models)):
            result = work(*models)
        self.progress()
        return result

    def model(self, weights: Weights, copy: int = 0) -> Any:
        """A working copy that holds ``weights`` until it is asked for others."""
        if copy not in self._copies:
            self._copies[copy] = working_copy(self.original)
        moved = () if weights.scale is None else (self.direction, weights.scale)
        set_parameters(self._copies[copy], self.original, weights.fmt, *moved)
        return self._copies[copy]
