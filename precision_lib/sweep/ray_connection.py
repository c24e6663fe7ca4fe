"""Ray itself: whether it is there, a connection to a cluster, and how many cells that holds.

A Ray that was not started here is not ended here. ``ray.init`` takes over what belongs to the
caller: its SIGTERM, which is how a sweep is asked to stop, and the state of ``random``.
"""

import logging
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from precision_lib.sweep.events import ExecutorError

#: Of a Ray that is started here; it holds states on their way, and spills to the disk beyond.
STORE_BYTES = 200 * 2**20


def import_ray() -> Any:
    """The ``ray`` module.

    Raises:
        ExecutorError: it is not installed; the message says how to.
    """
    try:
        import ray
    except ImportError:
        raise ExecutorError(
            "the Ray executor needs the optional package ray, which is not installed: "
            "pip install 'rlhf-precision-forensics[ray]', or use --executor local"
        ) from None
    return ray


@contextmanager
def connected(ray: Any, address: str | None, needs: dict[str, float]) -> Iterator[None]:
    """A connection; what is made here is closed again, and nothing else.

    An address of None starts Ray on this machine, which must have what one cell ``needs``. A
    connection that is there already is used, whatever the address.

    Raises:
        ExecutorError: no cluster at ``address``, or too small a machine.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, bool | int] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    with _as_found():
        try:
            ray.init(address or "local", **options)
        except ConnectionError as error:
            raise ExecutorError(f"no Ray cluster at {address}: {error}") from None
    try:
        if address is None and not slots(ray, needs):
            there = ray.cluster_resources()
            raise ExecutorError(
                f"a cell asks for {needs}, this machine has "
                f"{ {name: there.get(name, 0) for name in needs} }: give the address of a cluster"
            )
        yield
    finally:
        with _as_found():
            ray.shutdown()


@contextmanager
def _as_found() -> Iterator[None]:
    """Put back what ``ray.init`` takes over: the handler of SIGTERM and the state of ``random``."""
    state, handler = random.getstate(), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        random.setstate(state)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def slots(ray: Any, needs: dict[str, float]) -> int:
    """Cells that the cluster, as it is now, can run at once."""
    there = ray.cluster_resources()
    return int(min(there.get(name, 0) / need for name, need in needs.items()))
