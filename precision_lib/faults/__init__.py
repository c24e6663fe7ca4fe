"""Planted faults: one realistic mutation each, to show that a test can fail.

The hazard. A check that has never failed may be unable to. Each fault here was shipped by somebody
(its ``source`` says where to look), replaces one function of the pipeline, and names the test that
has to catch it.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from precision_lib.faults.kl_path import KL_PATH, Fault

FAULTS: dict[str, Fault] = {fault.name: fault for fault in KL_PATH}


@contextmanager
def plant(name: str) -> Iterator[Fault]:
    """Replace the function that the fault breaks, and put it back on leaving.

    Raises:
        ValueError: for an unknown fault.
    """
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; known: {', '.join(sorted(FAULTS))}")
    fault = FAULTS[name]
    module = importlib.import_module(fault.module)
    original = getattr(module, fault.function)
    setattr(module, fault.function, fault.broken)
    try:
        yield fault
    finally:
        setattr(module, fault.function, original)
