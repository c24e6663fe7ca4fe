"""The damage of every configuration of a record at an operating point, hypothesis by hypothesis.

The hazard. A cell that nobody measured, or that could not be decided, reads like a healthy one when
it is left out. So every declared hypothesis that applies has an entry, and only ``healthy`` is
healthy.
"""

from dataclasses import dataclass

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.hypothesis import BATCH_VARIANCE, Hypothesis
from precision_lib.forensics.operating import Carried, OperatingPoint
from precision_lib.forensics.verdicts import HEALTHY, IMPAIRED, INCONCLUSIVE, Cell, cell_verdict
from precision_lib.record.record import Record

#: Verdicts beside those of a cell.
NOT_MEASURED, NOT_APPLICABLE = "not measured", "does not apply"


@dataclass(frozen=True)
class Damage:
    """One hypothesis in one configuration, at the operating point.

    Attributes:
        verdict: of a cell, ``not measured`` or ``does not apply``.
        carried: the figure with what it rests on; None where there is none.
        limit: impaired above it, in the unit of the figure.
    """

    hypothesis: str
    verdict: str
    limit: float
    carried: Carried | None = None

    @property
    def over_limit(self) -> float | None:
        """The damage as a multiple of its limit; None where there is no figure."""
        return None if self.carried is None else self.carried.damage.value / self.limit


def applies(hypothesis: Hypothesis, point: OperatingPoint) -> bool:
    """Whether an algorithm runs what the hypothesis is about."""
    return not hypothesis.needs or bool(getattr(point, hypothesis.needs))


def damages_of(record: Record, configuration: str, point: OperatingPoint) -> tuple[Damage, ...]:
    """Every declared hypothesis in one configuration, in their order.

    Raises:
        ValueError: a cell lacks what its law needs; the message names the cell.
    """
    cells = record.by_key
    return tuple(
        _damage(hypothesis, cells.get((name, configuration)), point)
        for name, hypothesis in HYPOTHESES.items()
    )


def _damage(hypothesis: Hypothesis, cell: Cell | None, point: OperatingPoint) -> Damage:
    decision = hypothesis.decision
    if not applies(hypothesis, point):
        return Damage(hypothesis.name, NOT_APPLICABLE, decision.limit)
    if cell is None:
        return Damage(hypothesis.name, NOT_MEASURED, decision.limit)
    try:
        carried = hypothesis.carry(cell, decision.metric, point)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{cell.name} cannot be carried to the operating point: {error}") from None
    return Damage(hypothesis.name, _verdict(hypothesis, cell, carried), decision.limit, carried)


def _verdict(hypothesis: Hypothesis, cell: Cell, carried: Carried) -> str:
    """By the rules of a cell; the noise floors are carried with the damage."""
    if hypothesis.nonfinite and cell.metrics[hypothesis.nonfinite].value > 0:
        return IMPAIRED
    own = cell.metrics.get(BATCH_VARIANCE)
    floor = cell.evidence.golden_floor
    if own is None or floor is None:
        return INCONCLUSIVE
    return cell_verdict(
        carried.damage,
        hypothesis.decision.limit,
        golden_floor=floor.value * carried.factor,
        batch_variance=own.value * carried.factor,
    )


def verdict_of(damages: tuple[Damage, ...]) -> str:
    """Of a configuration: impaired anywhere, else undecided anywhere, else healthy.

    Raises:
        ValueError: no hypothesis applies, so that nothing was judged.
    """
    verdicts = [d.verdict for d in damages if d.verdict != NOT_APPLICABLE]
    if not verdicts:
        raise ValueError("no hypothesis applies to this algorithm: nothing was judged")
    if IMPAIRED in verdicts:
        return IMPAIRED
    return HEALTHY if all(v == HEALTHY for v in verdicts) else INCONCLUSIVE
