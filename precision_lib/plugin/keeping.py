"""What a test does with a cell that it has measured: into the record, its figures into JUnit."""

from collections.abc import Callable

from precision_lib.forensics.verdicts import Cell
from precision_lib.records.record import Recorder

Keep = Callable[[Cell], None]


def keeper(recorder: Recorder, record_property: Callable[[str, object], None]) -> Keep:
    """A function that keeps a cell."""

    def keep(cell: Cell) -> None:
        recorder.add_cell(cell)
        record_property("verdict", cell.verdict)
        for name, metric in cell.metrics.items():
            figure = f"{metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}] {metric.unit}"
            record_property(name, f"{figure} (n = {metric.n})")

    return keep
