"""Planted faults and wrong cores: one realistic mutation each, to show that a test can fail.

The hazard. A suite that has never turned red may be unable to, and nobody can tell from its green.
So the mistakes that frameworks really made are kept here, each with the test that has to notice it.
``plant`` breaks the pipeline itself; ``wrong_core`` is a core with one wrong function, to be tested
as anybody's core is.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

from precision_lib.faults.catalogue import CATALOGUE, Fault
from precision_lib.targets import BUILT_IN

__all__ = ["FAULTS", "Fault", "plant", "wrong_core"]

FAULTS: dict[str, Fault] = {fault.name: fault for fault in CATALOGUE}


@contextmanager
def plant(name: str) -> Iterator[Fault]:
    """Replace the function that the fault breaks wherever the core holds it; undone on leaving.

    Raises:
        ValueError: for an unknown fault.
    """
    fault = _known(name)
    original = getattr(importlib.import_module(fault.module), fault.function)
    places = [
        (module, key)
        for module in _core_modules()
        for key, value in vars(module).items()
        if value is original
    ]
    broken = fault.broken
    try:
        for module, key in places:
            setattr(module, key, broken)
        yield fault
    finally:
        for module, key in places:
            setattr(module, key, original)


def wrong_core(name: str) -> SimpleNamespace:
    """The nine functions of the built-in core, one of them replaced by the fault.

    Raises:
        ValueError: for an unknown fault, or one of a function that is not among the nine.
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


def _core_modules() -> list[ModuleType]:
    package = importlib.import_module(BUILT_IN)
    names = [f"{BUILT_IN}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    return [package, *map(importlib.import_module, names)]
