"""What H3 shows beside its cells: values of every size, and the three causes one at a time.

Sizes tell "large" from "large compared with the spread"; single causes tell rounded predictions
from rounded weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_lib.forensics.causal import REFERENCE_RUN, Paired, Sums, per_sequence
from precision_lib.forensics.h3.critics import Critics, Task
from precision_lib.forensics.h3.declaration import H3
from precision_lib.forensics.h3.updates import HeadFormats
from precision_lib.formats import get_format, ulp
from precision_lib.matrix import PrecisionConfig
from precision_lib.metrics import values as h3
from precision_lib.metrics.stagnation import stagnation_at
from precision_lib.scoring.scorer import GOLDEN

DAMAGE, LIMIT = H3.decision.metric, H3.decision.limit


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
    ) -> list[dict[str, Any]]:
        """Rewards scaled, head fitted again: stagnation, with its derivation, and advantages.

        Args:
            sums: of the configuration, with the stagnation at each magnitude.
        """
        rows = []
        for magnitude in magnitudes:
            task = self.critics.scaled(magnitude)
            stagnant, moved = (sums[name] for name in stagnation_at(magnitude))
            rate = self.paired.estimate(
                sums | {"stagnant": stagnant, "twin_moved": moved}, "value_stagnation_rate"
            )
            twin = self.critics.over_updates(self.critics.golden(configuration), task)
            derived = h3.predicted_stagnation(twin, configuration.value)
            rows.append(
                {
                    "magnitude": magnitude,
                    "twin_moves": int(moved.sum()),  # 0: FP32 stands still too, no rate
                    "value_stagnation_rate": rate.as_json(),
                    "value_stagnation_rate_predicted": derived,
                }
                | self._advantages(configuration, task)
            )
        return rows

    def by_offset(self, configuration: PrecisionConfig, offsets: Sequence[float]) -> dict[str, Any]:
        """Rewards offset, head fitted again; and the offset at which the cell turns impaired."""
        rows = [
            {"offset_over_spread": offset}
            | self._advantages(configuration, self.critics.offset(offset))
            for offset in offsets
        ]
        measured = [point[DAMAGE]["value"] for point in rows]
        derived = [point[f"{DAMAGE}_predicted"] for point in rows]
        return {
            "by_offset": rows,
            "critical_offset_over_spread": h3.crossing(offsets, measured, LIMIT),
            "critical_offset_over_spread_predicted": h3.crossing(offsets, derived, LIMIT),
        }

    def _advantages(self, configuration: PrecisionConfig, task: Task) -> dict[str, Any]:
        """What a task's advantages and TD errors lose, and what rounding the values predicts."""
        values = self.critics.values(configuration, task)
        golden = self.critics.values(self.critics.golden(configuration), task)
        mask, fmt = self.critics.mask, configuration.value
        quantities = h3.finite_quantities(values, golden, task.rewards, mask)
        sums = per_sequence(quantities, self.sequence)
        derived = h3.predicted_advantage_error(golden, task.rewards, mask, fmt)
        metrics = self.paired.estimates(sums, (DAMAGE, "value_td_zero_frac"))
        return {name: metric.as_json() for name, metric in metrics.items()} | {
            f"{DAMAGE}_predicted": derived
        }

    def causes(self, fmt: str, magnitudes: Sequence[float]) -> list[dict[str, Any]]:
        """The three places where a head rounds, one at a time, on the FP32 trunk.

        Per scale of the rewards and cause: stagnation rate; advantage error before any update;
        ``update_error``, RMS(move - twin's move) over RMS(twin's move) after all steps.
        """
        tasks = [self.critics.native(), *map(self.critics.scaled, magnitudes)]
        return [
            {"rewards": task.name, "cause": cause} | self._cause(task, formats, fmt)
            for task in tasks
            for cause, formats in one_rounding_each(fmt).items()
        ]

    def _cause(self, task: Task, formats: HeadFormats, fmt: str) -> dict[str, Any]:
        twin = self.critics.over_updates(REFERENCE_RUN, task)
        predictions, mask = self.critics.predictions(GOLDEN, task, formats), self.critics.mask
        stagnant, moved = h3.moves(predictions, twin)
        quantities = h3.finite_quantities(predictions[0], twin[0], task.rewards, mask)
        sums = per_sequence(quantities | {"stagnant": stagnant, "twin_moved": moved}, self.sequence)
        metrics = self.paired.estimates(sums, ("value_stagnation_rate", DAMAGE))
        figures: dict[str, Any] = {name: metric.as_json() for name, metric in metrics.items()}
        if formats.stored == fmt:
            derived = h3.predicted_advantage_error(twin[0], task.rewards, mask, fmt)
            figures["value_stagnation_rate_predicted"] = h3.predicted_stagnation(twin, fmt)
            figures[f"{DAMAGE}_predicted"] = derived
            # Values that lie within one step of each other are rounded together: no law then.
            step = ulp(twin[0], get_format(fmt)).median()
            figures["step_over_spread"] = float(step / twin[0].double().std())
        return figures | {"update_error": h3.update_error(predictions, twin)}


def one_rounding_each(fmt: str) -> dict[str, HeadFormats]:
    """The three causes: a head that is FP32 but for one place."""
    return {
        "stored_values": HeadFormats(inputs=GOLDEN, stored=fmt),
        "head_arithmetic": HeadFormats(inputs=fmt, stored=GOLDEN),
        "weight_update": HeadFormats(inputs=GOLDEN, stored=GOLDEN, master=fmt),
    }
