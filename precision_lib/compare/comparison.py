"""The result of a comparison: regressions, improvements, what was inconclusive, how much compared.

The hazard. A gate that compared nothing must not be green. The verdict has three values,
regression, no regression and inconclusive; nothing compared is inconclusive.
"""

from dataclasses import dataclass

from precision_lib.exit_codes import INCONCLUSIVE, OK, REGRESSION
from precision_lib.record.changes import NOWHERE, Change, Gate, Nearest

VERDICTS = {OK: "no regression", REGRESSION: "regression", INCONCLUSIVE: "inconclusive"}


@dataclass(frozen=True)
class Comparison:
    """What a comparison of two measurements, or of a part of them, shows; sums add up.

    Attributes:
        worse, better: metrics beyond their limit on either side.
        inconclusive: sentences, what could not be compared and why.
        compared: number of comparisons that could have turned red.
        blind: metrics that could not, since their limit lies beyond what they can reach.
        worst: the largest worsening. moved: the largest change, for the better or the worse.
        new: hypotheses that the baseline does not know, with their cells: they are not gated yet.
    """

    worse: tuple[Change, ...] = ()
    better: tuple[Change, ...] = ()
    inconclusive: tuple[str, ...] = ()
    compared: int = 0
    blind: tuple[str, ...] = ()
    worst: Nearest = NOWHERE
    moved: Nearest = NOWHERE
    new: tuple[str, ...] = ()

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.worse + other.worse,
            self.better + other.better,
            self.inconclusive + other.inconclusive,
            self.compared + other.compared,
            self.blind + other.blind,
            max(self.worst, other.worst, key=_place),
            max(self.moved, other.moved, key=_place),
            self.new + other.new,
        )

    @property
    def exit_code(self) -> int:
        """0, 1 for a regression, 2 when something could not be compared, or nothing was."""
        if self.worse:
            return REGRESSION
        return INCONCLUSIVE if self.inconclusive or not self.compared else OK

    @property
    def verdict(self) -> str:
        """The exit code in words."""
        return VERDICTS[self.exit_code]

    def gate(self, baseline: str) -> Gate:
        """What a record keeps beside its regressions; ``baseline`` names the file."""
        return Gate(
            baseline=baseline,
            verdict=self.verdict,
            compared=self.compared,
            blind=self.blind,
            obstacles=self.inconclusive,
            improvements=self.better,
            worst=self.worst,
            moved=self.moved,
            new=self.new,
        )


def _place(nearest: Nearest) -> tuple[float, str]:
    return nearest.share_of_limit, nearest.metric
