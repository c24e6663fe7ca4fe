"""Run the cells as tasks of a Ray cluster, or of a Ray that is started on this machine.

The hazards. A cluster has no common disk, its nodes leave without a word, and a task that Ray runs
again by itself begins at step 0. So each cell streams its lines and states to the driver, which
keeps its directory as a local run would have left it, and starts a lost cell again from the last
state that arrived: on another node, here, or by hand with ``ppo --resume``. A run that refuses its
settings or its state would refuse again and is not retried.

The package has to be installed on every node, in the driver's release, and models have to be found
there under the name that the driver gives: the embedded ones are in the package, a directory needs
the same path on every node. Ray's own client (``ray://``) has no streams: start the sweep on a node
of the cluster. A cell for which no node has room waits until one has, as autoscaling needs it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from precision_lib.sweep.events import Event
from precision_lib.sweep.executors import ExecutorError
from precision_lib.sweep.plan import SweepCell, SweepPlan
from precision_lib.sweep.ray_connection import check_address, connected, import_ray
from precision_lib.sweep.ray_tasks import Sweep

#: A quarter of a GPU: a small model does not fill one.
GPU_SHARE = 0.25


def run_ray(
    plan: SweepPlan,
    cells: list[SweepCell],
    stop: Callable[[], str | None] = lambda: None,
    *,
    address: str | None = None,
    cpus_per_cell: float = 1,
    gpus_per_cell: float | None = None,
) -> Iterator[Event]:
    """Run ``cells`` on a cluster; their events, as they happen, as those of ``run_local``.

    When ``stop`` gives a reason, or the events are no longer taken, cells that run are asked to
    stop after their step, and their last state is waited for.

    Args:
        address: of a cluster, or ``"auto"``; None starts Ray on this machine, for this call. A
            connection that the caller has made already is used whatever the address, and kept.
        cpus_per_cell: CPUs that Ray sets aside for a cell; its threads are ``OMP_NUM_THREADS``.
        gpus_per_cell: share of a GPU; None for 0 on the CPU and :data:`GPU_SHARE` on CUDA.

    Raises:
        ExecutorError: at once, Ray is not installed, impossible resources, an address of Ray's
            client; with the first event, no cluster there, or a machine that is too small.
    """
    ray = import_ray()
    check_address(address)
    if gpus_per_cell is None:
        gpus_per_cell = GPU_SHARE if plan.models.device.startswith("cuda") else 0
    if cpus_per_cell <= 0 or gpus_per_cell < 0:
        raise ExecutorError(f"a cell cannot use {cpus_per_cell} CPUs and {gpus_per_cell} GPUs")
    if gpus_per_cell > 1 and gpus_per_cell % 1:
        raise ExecutorError(
            f"{gpus_per_cell} GPUs per cell: Ray shares one GPU, or gives whole ones"
        )
    if gpus_per_cell and plan.models.device.startswith("cuda:"):
        raise ExecutorError(
            f"--device {plan.models.device}: Ray gives each cell its GPU, use --device cuda"
        )
    needs = {"CPU": cpus_per_cell, "GPU": gpus_per_cell}
    return _run(ray, plan, cells, stop, address, {k: v for k, v in needs.items() if v > 0})


def _run(
    ray: Any,
    plan: SweepPlan,
    cells: list[SweepCell],
    stop: Callable[[], str | None],
    address: str | None,
    needs: dict[str, float],
) -> Iterator[Event]:
    with connected(ray, address, needs):
        sweep = Sweep(ray, plan, needs, list(cells))
        reason = None
        try:
            while (sweep.waiting or sweep.running) and not (reason := stop()):
                while sweep.waiting and len(sweep.running) < sweep.room():
                    yield from sweep.submit(sweep.waiting.pop(0))
                for task in sweep.ready():
                    yield from sweep.take(task)
        finally:
            sweep.end(reason or "the end of the sweep")
