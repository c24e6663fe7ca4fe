"""The gate: a run against a baseline, metric by metric.

Every regression says component, metric, before, after and limit. Improvements are reported.
"""

from precision_lib.compare.baseline import Baseline
from precision_lib.compare.cells import compare_cells
from precision_lib.compare.comparison import Comparison
from precision_lib.compare.core import compare_cores
from precision_lib.compare.formats import compare_formats
from precision_lib.compare.inconclusive import (
    changed_matrix,
    elsewhere,
    foreign,
    new_hypotheses,
    unmatched,
    untrustworthy,
)
from precision_lib.compare.training import compare_training
from precision_lib.record.record import Record


def judge(record: Record, baseline: Baseline) -> Comparison:
    """Compare a record with a baseline.

    Raises:
        ValueError: a metric that ``directions.py`` does not know.
    """
    apart = foreign(record, baseline)
    if apart:
        return Comparison(inconclusive=(*untrustworthy(record), *apart))
    return compare(record, baseline)


def compare(record: Record, baseline: Baseline) -> Comparison:
    """:func:`judge` without asking whether the two are of the same thing."""
    obstacles = (
        *untrustworthy(record),
        *changed_matrix(record, baseline),
        *elsewhere(record, baseline),
        *unmatched(record, baseline),
    )
    new = new_hypotheses(record, baseline).items()
    return (
        Comparison(inconclusive=obstacles, new=tuple(f"{h}, {count} cells" for h, count in new))
        + compare_cores(record.conformance, baseline.conformance)
        + compare_formats(record, baseline)
        + compare_cells(record, baseline)
        + compare_training(record.training, baseline.training)
    )
