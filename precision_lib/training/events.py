"""What a PPO run says while it trains. Each event is on disk when it is said."""

from dataclasses import dataclass

from precision_lib.training.lines import StepLine
from precision_lib.training.summary import RunSummary


@dataclass(frozen=True)
class Began:
    """The run is open; ``step`` is the first that is done here."""

    step: int


@dataclass(frozen=True)
class Stepped:
    """A step is done."""

    line: StepLine


@dataclass(frozen=True)
class StateWritten:
    """The state before ``step`` is on disk."""

    step: int


@dataclass(frozen=True)
class Ended:
    """The run has ended, in whatever way."""

    summary: RunSummary


Event = Began | Stepped | StateWritten | Ended
