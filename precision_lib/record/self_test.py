"""What the gate's own tests found: planted faults, clean runs, the noise floor of a device."""

from collections.abc import Mapping
from dataclasses import dataclass

from precision_lib.forensics.hypothesis import Decision
from precision_lib.record.context import Context

#: Hypothesis, configuration and metric to a figure in the metric's unit.
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Catch:
    """Who caught a fault; the margin is None where it has no size."""

    by: str
    margin: float | None
    unit: str


@dataclass(frozen=True)
class FaultOutcome:
    """What became of a planted fault.

    Attributes:
        outcome: caught, missed, below the noise floor, or a false alarm.
        smallest_detectable: from which size on the gate sees it; None where it was caught.
    """

    name: str
    function: str
    meaning: str
    source: str
    outcome: str
    caught: tuple[Catch, ...]
    smallest_detectable: str | None


@dataclass(frozen=True)
class CleanJudgements:
    """Runs in which nothing is wrong, each judged against another.

    Attributes:
        runs, comparisons: that were judged. false_alarms: runs with a regression.
        not_compared: runs of which a part could not be compared. alarms: their messages.
        worst_share_of_limit: the largest worsening, of ``worst_metric``.
    """

    runs: int
    comparisons: int
    false_alarms: int
    worst_share_of_limit: float
    not_compared: int = 0
    alarms: tuple[str, ...] = ()
    worst_metric: str = ""


@dataclass(frozen=True)
class CleanRuns(CleanJudgements):
    """Runs of other seeds against the first seed's, and each against the one before it."""

    baseline_seed: int = 0
    last_seed: int = 0
    seeds: tuple[int, ...] = ()
    against_the_run_before: CleanJudgements | None = None


@dataclass(frozen=True)
class SelfTest:
    """Faults and clean runs; ``clean_runs`` is None where they were not run."""

    context: Context
    faults: tuple[FaultOutcome, ...]
    clean_runs: CleanRuns | None


@dataclass(frozen=True)
class Calibration:
    """The noise floor of every metric on a device, and the smallest regression that is found.

    Attributes:
        variations: how the runs differed. power: probability with which a regression is found.
        comparisons: metrics of a run that are compared.
        values, floors, smallest: of each gated metric.
    """

    context: Context
    variations: tuple[str, ...]
    power: float
    comparisons: int
    thresholds: Mapping[str, Decision]
    values: Figures
    floors: Figures
    smallest: Figures
