"""Who runs the cells of a sweep, by name; an option that the executor does not know is refused."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from precision_lib.sweep.events import Event, ExecutorError
from precision_lib.sweep.local import run_local
from precision_lib.sweep.plan import SweepCell, SweepPlan

LOCAL, RAY = "local", "ray"
NAMES = (LOCAL, RAY)


@dataclass(frozen=True)
class Resources:
    """What the cells may use.

    Attributes:
        executor: of :data:`NAMES`.
        jobs: local: cells at once; None for as many as the machine holds.
        address: ray: of a running cluster; None starts one on this machine.
        gpus_per_cell: ray: share of a GPU per cell; None for 0 on the CPU and a quarter on CUDA.
    """

    executor: str = LOCAL
    jobs: int | None = None
    address: str | None = None
    gpus_per_cell: float | None = None

    def __post_init__(self) -> None:
        if self.executor not in NAMES:
            raise ExecutorError(
                f"unknown executor {self.executor!r}; use one of {', '.join(NAMES)}"
            )
        if self.executor == RAY and self.jobs is not None:
            raise ExecutorError("--jobs is for local runs; Ray runs what the cluster has room for")
        if self.executor == LOCAL and (self.address or self.gpus_per_cell is not None):
            raise ExecutorError("--ray_address and --gpus_per_cell need --executor ray")
        if self.jobs is not None and self.jobs < 1:
            raise ExecutorError(f"--jobs {self.jobs} must be at least 1")


def executor(
    plan: SweepPlan, resources: Resources, stop: Callable[[], str | None]
) -> Callable[[list[SweepCell]], Iterable[Event]]:
    """A function that runs cells of ``plan`` and gives their events.

    Raises:
        ExecutorError: Ray is asked for and not installed.
    """
    if resources.executor == RAY:
        from precision_lib.sweep.ray_cluster import run_ray
        from precision_lib.sweep.ray_connection import import_ray

        import_ray()  # before anything is deleted for a fresh start
        return partial(
            run_ray,
            plan,
            stop=stop,
            address=resources.address,
            gpus_per_cell=resources.gpus_per_cell,
        )
    return partial(run_local, plan, jobs=resources.jobs, stop=stop)
