"""How an engine's tensor equals a trainer's: bitwise, after a cast, after a rounding; or not.

Only hashes decide. "unknown" is what a manifest does not hold the hash for.
"""

from dataclasses import dataclass

from precision_lib.weights.codes import is_float
from precision_lib.weights.tensors import CASTS, Tensor, wider


@dataclass(frozen=True)
class Relation:
    """Attributes:
    way: "bitwise", "cast", "upcast", "rounded" (the engine's values passed through ``fmt``),
        "trainer rounded", "different" or "unknown".
    fmt: the format of the cast or of the rounding.
    """

    way: str
    fmt: str = ""

    @property
    def equal(self) -> bool:
        return self.way in ("bitwise", "cast", "upcast")


DIFFERENT, UNKNOWN = Relation("different"), Relation("unknown")


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` without axes of length one: these do not change the canonical bytes."""
    return tuple(n for n in shape if n != 1)


def relation(trainer: Tensor, engine: Tensor) -> Relation:
    """How ``engine`` follows from ``trainer``, for tensors without a scale."""
    if squeezed(trainer.shape) != squeezed(engine.shape):
        return DIFFERENT
    if trainer.fmt == engine.fmt:
        if trainer.digest(trainer.fmt) == engine.digest(engine.fmt):
            return Relation("bitwise")
        return _rounded(trainer, engine)
    if not (is_float(trainer.fmt) and is_float(engine.fmt)):
        return DIFFERENT
    if wider(engine.fmt, trainer.fmt):
        back = engine.digest(trainer.fmt)
        if back is None:
            return UNKNOWN
        if back != trainer.digest(trainer.fmt):
            return _rounded(trainer, engine)
        exact = engine.exact_in(trainer.fmt)
        return Relation("upcast", engine.fmt) if exact else Relation("trainer rounded", trainer.fmt)
    wanted = trainer.digest(engine.fmt)
    if wanted is None:
        return UNKNOWN
    same = wanted == engine.digest(engine.fmt)
    return Relation("cast", engine.fmt) if same else DIFFERENT


def _rounded(trainer: Tensor, engine: Tensor) -> Relation:
    """Whether one of them is the other one's values rounded to a format and widened again."""
    for low in CASTS:
        if not wider(engine.fmt, low) or trainer.fmt == low:
            continue
        for one, way in ((engine, "rounded"), (trainer, "trainer rounded")):
            if one.exact_in(low) and trainer.digest(low) == engine.digest(low):
                return Relation(way, low)
    return DIFFERENT
