"""The words of a verdict, and what it rests on."""

import math
from dataclasses import dataclass

from precision_lib.mismatch.misalignment import Misalignment
from precision_lib.mismatch.noise import NoiseLimit
from precision_lib.mismatch.sample import Fingerprint
from precision_lib.mismatch.schema import Dump
from precision_lib.weights.findings import Outcome

EQUAL, PRECISION, CANNOT_SAY = "equal", "precision", "cannot say"
ALIGNMENT, SEMANTICS, DELIVERY, MODEL = "alignment", "semantics", "delivery", "model"
VERDICTS = (EQUAL, PRECISION, ALIGNMENT, SEMANTICS, DELIVERY, MODEL, CANNOT_SAY)
#: Fewer tokens than this and no gross fault is seen with 90 % (docs/mismatch.md, the table).
FEWEST_TOKENS = 100


@dataclass(frozen=True)
class Size:
    """How large d is: sigma in nats, and what the claims allow; None without claims.

    Attributes:
        floor: sigma of the second forwards, in quadrature, where the dump holds any; else None.
    """

    sigma: float
    limit: NoiseLimit | None
    floor: float | None

    @property
    def usual(self) -> float:
        """Above this, few models of the formats are so noisy."""
        usual = self.limit.usual if self.limit else math.inf
        # A second forward shares kernels with the first: the two sides may differ 3 times more.
        return min(usual, 3 * self.floor) if self.floor else usual

    @property
    def largest(self) -> float:
        """Above this, no model of the formats is."""
        return self.limit.largest if self.limit else math.inf


@dataclass(frozen=True)
class Judgement:
    """The verdict and what it rests on.

    Attributes:
        verdict: one of :data:`VERDICTS`. cause: the kind within it, a few words.
        reasons: sentences, the deciding one first.
        also_possible: verdicts that the evidence does not exclude.
        fingerprints, size: of the aligned tokens. problems: of the alignment.
        beyond_limit: the size exceeds the claimed formats' usual range, or the user's limit.
        weights: the comparison of both sides' weights, None where none was made.
    """

    verdict: str
    cause: str
    reasons: tuple[str, ...]
    also_possible: tuple[str, ...]
    fingerprints: dict[str, Fingerprint]
    size: Size
    problems: tuple[Misalignment, ...]
    dump: Dump
    beyond_limit: bool = False
    weights: Outcome | None = None


#: Verdict, cause, reasons, and verdicts that are not excluded.
Decision = tuple[str, str, tuple[str, ...], tuple[str, ...]]
