"""Planted faults and wrong cores: one realistic mutation each, to show that a test can fail.

Each is a mistake that a framework really made, with the test that has to notice it. ``plant``
breaks the pipeline itself; ``wrong_core`` is a core with one wrong function, tested as any core is.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from precision_lib.faults.catalogue import CATALOGUE, Fault
from precision_lib.targets import BUILT_IN

__all__ = ["FAULTS", "Fault", "plant", "wrong_core"]

_PACKAGE = f"{__name__.split('.')[0]}."
FAULTS: dict[str, Fault] = {fault.name: fault for fault in CATALOGUE}


@contextmanager
def plant(name: str) -> Iterator[Fault]:
    """Replace the function that the fault breaks wherever this package holds it; undone on leaving.

    Modules that are imported while it is planted get the broken function too, and lose it again.

    Raises:
        ValueError: for an unknown fault.
    """
    fault = _known(name)
    original = getattr(importlib.import_module(fault.module), fault.function)
    importlib.import_module(BUILT_IN)
    broken = fault.broken
    _exchange(original, broken)
    try:
        yield fault
    finally:
        _exchange(broken, original)


def _exchange(present: object, wanted: object) -> None:
    """Replace one function by another in every loaded module of this package that names it.

    The broken functions' own modules keep what they call: a fault may build on the original.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(_PACKAGE) and not name.startswith(__name__):
            for key, value in list(vars(module).items()):
                if value is present:
                    setattr(module, key, wanted)


def wrong_core(name: str) -> SimpleNamespace:
    """The functions of the built-in core, one of them replaced by the fault.

    Raises:
        ValueError: for an unknown fault, or one of a function that no core offers.
    """
    fault = _known(name)
    core = importlib.import_module(BUILT_IN)
    functions = {function: getattr(core, function) for function in core.__all__}
    if fault.function not in functions:
        raise ValueError(f"{name} breaks {fault.function}, which no core offers; plant it instead")
    return SimpleNamespace(**functions | {fault.function: fault.broken})


def _known(name: str) -> Fault:
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; known: {', '.join(sorted(FAULTS))}")
    return FAULTS[name]
