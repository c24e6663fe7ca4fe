"""What a fault is, and how its test is written down: exactly as pytest prints the test's id."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from precision_lib.targets import BUILT_IN


@dataclass(frozen=True)
class Fault:
    """One mutation of one function.

    Attributes:
        name: how it is planted; also the name of the broken function.
        function, module: what it replaces, and the module that defines it.
        implementation: the module of this package that holds the broken function.
        meaning: what goes wrong.
        source: where it was seen.
        caught_by: the conformance check that a core with it has to fail; "" where ``function`` is
            not one that a core offers.
        caught_in_pipeline: the test of the pipeline that has to turn red when it is planted, as
            file::test below tests/forensics; "" where the pipeline does not depend on it.
        harmless: nobody may catch it: it changes less than FP32 arithmetic itself leaves open.
        measured_in: for a harmless one, the file below tests/forensics that sees what it does.
    """

    name: str
    function: str
    module: str
    implementation: str
    meaning: str
    source: str
    caught_by: str
    caught_in_pipeline: str = ""
    harmless: bool = False
    measured_in: str = ""

    @property
    def broken(self) -> Callable[..., Any]:
        """The replacement, with the signature of the original; imports torch."""
        module = importlib.import_module(f"precision_lib.faults.{self.implementation}")
        broken: Callable[..., Any] = getattr(module, self.name)
        return broken


#: name, meaning, source, caught_by
Row = tuple[str, str, str, str]

#: caught_by of a result in bf16.
TOO_NARROW = "test_result_is_fp32_or_wider[{function}-bf16]"


def values(variant: str) -> str:
    """caught_by of a wrong value or gradient; ``variant`` is region-format."""
    return f"test_values_are_within_their_bound[{{function}}-{variant}]"


def broken_property(variant: str) -> str:
    """caught_by of a broken property; ``variant`` is name-format."""
    return f"test_property_holds[{{function}}-{variant}]"


def faults(
    function: str,
    module: str,
    implementation: str,
    rows: Iterable[Row],
    caught_in_pipeline: str = "",
) -> tuple[Fault, ...]:
    """The faults of one function; ``{function}`` in caught_by stands for its name."""
    return tuple(
        Fault(
            name=name,
            function=function,
            module=f"{BUILT_IN}.{module}",
            implementation=implementation,
            meaning=meaning,
            source=source,
            caught_by=caught_by.format(function=function),
            caught_in_pipeline=caught_in_pipeline,
        )
        for name, meaning, source, caught_by in rows
    )
