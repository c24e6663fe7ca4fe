"""What an executor says while the cells of a sweep run.

Every executor, local or on a cluster, is a generator of these events. Whoever shows progress or
waits knows nothing else.
"""

from dataclasses import dataclass

from precision_lib.sweep.plan import SweepCell

STARTED, STEPPED, FINISHED, FAILED, RETRIED = "started", "stepped", "finished", "failed", "retried"


class ExecutorError(ValueError):
    """An option does not go with the executor, or the executor cannot run; the message says why."""


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: one of the above. ``finished``: there is a summary with a final status. ``failed``: no
            further try is made, and the cell has no result. ``retried``: it starts again.
        cell: whom it happened to.
        steps: steps of the cell that are done.
        detail: the status, or why it failed.
    """

    kind: str
    cell: SweepCell
    steps: int = 0
    detail: str = ""
