"""The list of conformance checks: every function, in every region and format, and every property.

The list is a constant, the same for every target. Each check has an id that says what it tests.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import hypothesis.strategies as st
from hypothesis.strategies import SearchStrategy

from precision_lib.conformance.calls import call
from precision_lib.conformance.compare import compare
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.objective_properties import OBJECTIVE_PROPERTIES
from precision_lib.conformance.pinned import PINNED
from precision_lib.conformance.properties import PROPERTIES, Function, Holds
from precision_lib.conformance.strategies import INPUT_FORMATS, REGIONS, Case
from precision_lib.conformance.strategies.objectives import OBJECTIVE_REGIONS
from precision_lib.conformance.truth import truths
from precision_lib.formats import FORMATS, get_format

#: (number of compared elements, largest error as a share of its limit)
Compared = tuple[int, float]
ALL_REGIONS = REGIONS | OBJECTIVE_REGIONS
FP32_OR_WIDER = (FORMATS["fp32"].dtype, FORMATS["fp64"].dtype)


@dataclass(frozen=True)
class Check:
    """One conformance test, ``test[id]``; the id is ``function-variant-format``.

    Attributes:
        judge: (function under test, inputs) -> what was compared; raises ConformanceFailure.
        meaning: what is hard, in one sentence, with a link where it was reported.
        cost: share of the normal number of examples.
    """

    test: str
    id: str
    function: str
    cases: SearchStrategy[Case]
    judge: Callable[[Function, dict[str, Any]], Compared]
    meaning: str
    cost: float = 1.0

    @property
    def name(self) -> str:
        """``test[id]``, as pytest shows it."""
        return f"{self.test}[{self.id}]"


@cache
def checks() -> tuple[Check, ...]:
    """All checks, in a fixed order."""
    return (*_value_checks(), *_format_checks(), *_property_checks(), *_pinned_checks())


def find_check(name: str) -> Check:
    """The check called ``test[id]``.

    Raises:
        ValueError: when there is none.
    """
    for check in checks():
        if check.name == name:
            return check
    raise ValueError(f"no conformance check is called {name!r}; see pytest --collect-only -q")


def _value_checks() -> Iterator[Check]:
    for function, regions in ALL_REGIONS.items():
        for region, about in regions.items():
            for fmt in about.formats:
                yield Check(
                    "test_values_are_within_their_bound",
                    f"{function}-{region}-{fmt}",
                    function,
                    about.cases(get_format(fmt)),
                    partial(_values, function),
                    about.meaning,
                    about.cost,
                )


def _format_checks() -> Iterator[Check]:
    for function, regions in ALL_REGIONS.items():
        for fmt in INPUT_FORMATS:
            yield Check(
                "test_result_is_fp32_or_wider",
                f"{function}-{fmt}",
                function,
                regions["ordinary"].cases(get_format(fmt)),
                partial(_fp32_or_wider, function),
                "a result in the input's format loses what the arithmetic gained",
                cost=0.1,
            )


def _property_checks() -> Iterator[Check]:
    for function, properties in (PROPERTIES | OBJECTIVE_PROPERTIES).items():
        for name, about in properties.items():
            for fmt in about.formats:
                yield Check(
                    "test_property_holds",
                    f"{function}-{name}-{fmt}",
                    function,
                    about.cases(get_format(fmt)),
                    partial(_property, about.holds, function),
                    about.meaning,
                    about.cost,
                )


def _pinned_checks() -> Iterator[Check]:
    for pinned in PINNED:
        yield Check(
            "test_pinned_example",
            f"{pinned.function}-{pinned.name}",
            pinned.function,
            st.just(Case(dict(pinned.inputs))),
            partial(_values, pinned.function),
            f"{pinned.meaning}; see {pinned.link}",
        )


def _values(name: str, function: Function, inputs: dict[str, Any]) -> Compared:
    got = call(name, function, inputs)
    count, worst = 0, 0.0
    for part, truth in truths(name, inputs).items():
        if part in got:
            compared, share = compare(name, got[part], truth, inputs)
            count += compared
            # A 16-bit gradient is half a step of its own format off, whatever the core does.
            if got[part].dtype in FP32_OR_WIDER:
                worst = max(worst, share)
    return count, worst


def _fp32_or_wider(name: str, function: Function, inputs: dict[str, Any]) -> Compared:
    parts = call(name, function, inputs)
    results = {k: v for k, v in parts.items() if not k.startswith("gradient")}
    for part, x in results.items():
        if x.dtype not in FP32_OR_WIDER:
            raise ConformanceFailure(
                f"{name}: the {part} is {x.dtype}; the interface asks for float32 or wider, "
                "whatever the input format",
                inputs,
            )
    return len(results), 0.0


def _property(holds: Holds, name: str, function: Function, inputs: dict[str, Any]) -> Compared:
    return holds(name, function, inputs), 0.0
