"""What H3 shows beside its cells: values of every size, and the three causes one at a time.

Sizes tell "large" from "large compared with the spread"; single causes tell rounded predictions
from rounded weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from precision_lib.forensics.causal import REFERENCE_RUN, Paired, Sums, per_sequence
from precision_lib.forensics.evidence import Cause, Magnitude, Offset
from precision_lib.forensics.h3.critics import Critics, Task
from precision_lib.forensics.h3.declaration import H3
from precision_lib.forensics.h3.updates import HeadFormats
from precision_lib.forensics.statistics import Metric
from precision_lib.formats import get_format, ulp
from precision_lib.matrix import PrecisionConfig
from precision_lib.metrics import values as h3
from precision_lib.metrics.stagnation import stagnation_at
from precision_lib.scoring.scorer import GOLDEN

DAMAGE, STAGNATION = H3.decision.metric, H3.decision.symptom
LIMIT = H3.decision.limit


@dataclass(frozen=True)
class Sizes:
    """Critics of every size, compared on the same sequences.

    Attributes:
        sequence: [M], the sequence of each response token.
    """

    critics: Critics
    paired: Paired
    sequence: NDArray[np.int64]

    def by_magnitude(
        self, configuration: PrecisionConfig, magnitudes: Sequence[float], sums: Sums
    ) -> tuple[Magnitude, ...]:
        """Rewards scaled, head fitted again: stagnation, with its derivation, and advantages.

        Args:
            sums: of the configuration, with the stagnation at each magnitude.
        """
        rows = []
        for magnitude in magnitudes:
            task = self.critics.scaled(magnitude)
            stagnant, moved = (sums[name] for name in stagnation_at(magnitude))
            rate = self.paired.estimate(
                sums | {"stagnant": stagnant, "twin_moved": moved}, STAGNATION
            )
            twin = self.critics.over_updates(self.critics.golden(configuration), task)
            metrics, predicted = self._advantages(configuration, task)
            rows.append(
                Magnitude(
                    magnitude=magnitude,
                    twin_moves=int(moved.sum()),  # 0: none moves in FP32, no rate
                    value_stagnation_rate_predicted=h3.predicted_stagnation(
                        twin, configuration.value
                    ),
                    advantage_rms_error_predicted=predicted,
                    metrics={STAGNATION: rate} | metrics,
                )
            )
        return tuple(rows)

    def by_offset(
        self, configuration: PrecisionConfig, offsets: Sequence[float]
    ) -> tuple[Offset, ...]:
        """Rewards offset, head fitted again."""
        rows = []
        for offset in offsets:
            metrics, predicted = self._advantages(configuration, self.critics.offset(offset))
            rows.append(Offset(offset, predicted, metrics))
        return tuple(rows)

    def _advantages(
        self, configuration: PrecisionConfig, task: Task
    ) -> tuple[dict[str, Metric], float]:
        """What a task's advantages and TD errors lose, and what rounding the values predicts."""
        values = self.critics.values(configuration, task)
        golden = self.critics.values(self.critics.golden(configuration), task)
        mask, fmt = self.critics.mask, configuration.value
        quantities = h3.finite_quantities(values, golden, task.rewards, mask)
        sums = per_sequence(quantities, self.sequence)
        derived = h3.predicted_advantage_error(golden, task.rewards, mask, fmt)
        return self.paired.estimates(sums, (DAMAGE, "value_td_zero_frac")), derived

    def causes(self, fmt: str, magnitudes: Sequence[float]) -> tuple[Cause, ...]:
        """The three places where a head rounds, one at a time, on the FP32 trunk.

        Per scale of the rewards and cause: stagnation rate; advantage error before any update;
        ``update_error``, RMS(move - twin's move) over RMS(twin's move) after all steps.
        """
        tasks = [self.critics.native(), *map(self.critics.scaled, magnitudes)]
        return tuple(
            self._cause(task, cause, formats, fmt)
            for task in tasks
            for cause, formats in one_rounding_each(fmt).items()
        )

    def _cause(self, task: Task, name: str, formats: HeadFormats, fmt: str) -> Cause:
        twin = self.critics.over_updates(REFERENCE_RUN, task)
        predictions, mask = self.critics.predictions(GOLDEN, task, formats), self.critics.mask
        stagnant, moved = h3.moves(predictions, twin)
        quantities = h3.finite_quantities(predictions[0], twin[0], task.rewards, mask)
        sums = per_sequence(quantities | {"stagnant": stagnant, "twin_moved": moved}, self.sequence)
        cause = Cause(
            rewards=task.name,
            cause=name,
            update_error=h3.update_error(predictions, twin),
            metrics=self.paired.estimates(sums, (STAGNATION, DAMAGE)),
        )
        if formats.stored != fmt:
            return cause
        # Values that lie within one step of each other are rounded together: no law then.
        step = ulp(twin[0], get_format(fmt)).median()
        return replace(
            cause,
            value_stagnation_rate_predicted=h3.predicted_stagnation(twin, fmt),
            advantage_rms_error_predicted=h3.predicted_advantage_error(
                twin[0], task.rewards, mask, fmt
            ),
            step_over_spread=float(step / twin[0].double().std()),
        )


def critical_offset(points: Sequence[Offset], *, predicted: bool = False) -> float | None:
    """The offset over the spread at which the measured, or the predicted, damage is the limit."""
    damages = [
        p.advantage_rms_error_predicted if predicted else p.metrics[DAMAGE].value for p in points
    ]
    return h3.crossing([p.offset_over_spread for p in points], damages, LIMIT)


def one_rounding_each(fmt: str) -> dict[str, HeadFormats]:
    """The three causes: a head that is FP32 but for one place."""
    return {
        "stored_values": HeadFormats(inputs=GOLDEN, stored=fmt),
        "head_arithmetic": HeadFormats(inputs=fmt, stored=GOLDEN),
        "weight_update": HeadFormats(inputs=GOLDEN, stored=GOLDEN, master=fmt),
    }
