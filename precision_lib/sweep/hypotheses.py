"""What training says of each hypothesis: promotion heals, demotion harms, the twin does neither.

The hazard. Of seven configurations one is always the worst. So a hypothesis names beforehand which
promotion has to heal and which demotion has to harm. What more seeds could still turn round is
inconclusive, and so is everything when the twin differs from the baseline.
"""

import math
from collections.abc import Mapping

from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import (
    HEALTHY,
    IMPAIRED,
    INCONCLUSIVE,
    PARTLY,
    REFUTED,
    SUPPORTED,
)
from precision_lib.matrix import TWIN
from precision_lib.record.sweep import Difference, TrainingCell, TrainingVerdict, TwinControl
from precision_lib.sweep.blocks import Blocks
from precision_lib.sweep.cells import DAMAGE, gain_share
from precision_lib.sweep.plan import REFERENCE_RUN
from precision_lib.training.failures import COMPLETED

#: Of the interval that has to hold 0 for the twin: one false alarm in ten thousand sweeps.
CONTROL_CONFIDENCE = 0.9999


def control_of(objective: Blocks) -> TwinControl:
    """Twin against baseline: the interval of their difference has to hold 0.

    At :data:`CONTROL_CONFIDENCE`, because this one must not raise a false alarm.
    """
    value, low, high = objective.difference(TWIN.name, REFERENCE_RUN.name, CONTROL_CONFIDENCE)
    is_null = low <= 0 <= high if math.isfinite(low) else None
    return TwinControl(TWIN.name, Difference(value, low, high), is_null)


def training_verdict(
    hypothesis: str, cells: Mapping[str, TrainingCell], objective: Blocks
) -> TrainingVerdict:
    """Verdict on a hypothesis from the cells of its decision.

    ``objective``: gains of the configurations that completed every run.
    """
    decision, control = DECISIONS[hypothesis], control_of(objective)
    pure, promoted, demoted = (
        cells.get(name) for name in ("bf16_pure", decision.promoted, decision.demoted)
    )
    healed, needed = None, None
    if pure is None or promoted is None:
        word = INCONCLUSIVE
        explanation = f"bf16_pure and {decision.promoted} were not both trained"
    else:
        names = promoted.configuration, pure.configuration
        if set(names) <= set(objective.names):
            healed = gain_share(objective, *names)
        word = word_of(pure, promoted, demoted, healed, control)
        explanation = _explanation(pure, promoted, demoted, healed)
        if word == INCONCLUSIVE and control.is_null:
            needed = _seeds_needed(_looked_at(pure, promoted, demoted))
    return TrainingVerdict(hypothesis, decision.title, word, healed, control, explanation, needed)


def word_of(
    pure: TrainingCell,
    promoted: TrainingCell,
    demoted: TrainingCell | None,
    healed: Metric | None,
    control: TwinControl,
) -> str:
    """Verdict from promotion and, where it was trained, demotion.

    As in the main job, but that an undecided promotion says nothing where nothing is impaired:
    there is nothing to heal then. ``healed`` is None where a run of either failed; the cells decide
    alone.
    """
    if not control.is_null:
        return INCONCLUSIVE
    if any(c.verdict == INCONCLUSIVE for c in _looked_at(pure, promoted, demoted)):
        return INCONCLUSIVE
    heals = (
        pure.verdict == IMPAIRED
        and promoted.verdict == HEALTHY
        and (healed is None or healed.low > 0)
    )
    harms = demoted is not None and demoted.verdict == IMPAIRED
    if heals and harms:
        return SUPPORTED
    return PARTLY if heals or harms else REFUTED


def _looked_at(
    pure: TrainingCell, promoted: TrainingCell, demoted: TrainingCell | None
) -> list[TrainingCell]:
    """Cells that the verdict hangs on."""
    cells = [pure, demoted] if pure.verdict == HEALTHY else [pure, promoted, demoted]
    return [cell for cell in cells if cell is not None]


def _seeds_needed(cells: list[TrainingCell]) -> int | None:
    undecided = [c.seeds_needed for c in cells if c.verdict == INCONCLUSIVE]
    known = [needed for needed in undecided if needed is not None]
    return max(known) if known and len(known) == len(undecided) else None


def _explanation(
    pure: TrainingCell,
    promoted: TrainingCell,
    demoted: TrainingCell | None,
    healed: Metric | None,
) -> str:
    parts = [f"{c.configuration} {_lost(c)}" for c in (pure, promoted, demoted) if c is not None]
    text = "; ".join(parts)
    if healed is not None:
        text += f". The promotion takes back {_percent(healed)} of the baseline's gain"
    return text + "."


def _lost(cell: TrainingCell) -> str:
    if not cell.metrics:
        failed = [f"{seed} ({s})" for seed, s in cell.statuses.items() if s != COMPLETED]
        return f"failed with seed {', '.join(failed)}" if failed else "left no finite figures"
    if DAMAGE not in cell.metrics:
        return "has nothing to lose: the baseline has gained nothing"
    return f"loses {_percent(cell.metrics[DAMAGE])} of the gain ({cell.verdict})"


def _percent(metric: Metric) -> str:
    if not math.isfinite(metric.low):
        return f"{metric.value:.0%} [?, ?]"
    return f"{metric.value:.0%} [{metric.low:.0%}, {metric.high:.0%}]"
