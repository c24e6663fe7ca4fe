"""What a test does with a cell that it has measured: into the record, its figures into JUnit.

The cell also has to be measured against something: FP32 that repeats itself in another batch shape.
"""

from collections.abc import Callable

from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.forensics.verdicts import Cell
from precision_lib.record.recorder import Recorder

Keep = Callable[[Cell], None]


def keeper(recorder: Recorder, record_property: Callable[[str, object], None]) -> Keep:
    """A function that keeps a cell, then fails if its truth is not known to less than the limit."""

    def keep(cell: Cell) -> None:
        recorder.add_cell(cell)
        record_property("verdict", cell.verdict)
        for name, metric in cell.metrics.items():
            figure = f"{metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}] {metric.unit}"
            record_property(name, f"{figure} (n = {metric.n})")
        floor, limit = cell.golden_floor, DECISIONS[cell.hypothesis].limit
        assert floor < limit, (
            f"FP32 in another batch shape is off by {floor:.3g}, the limit is {limit:.3g}: "
            "nothing can be decided on this device; look for TF32"
        )

    return keep
