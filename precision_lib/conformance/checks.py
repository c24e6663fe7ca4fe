"""The list of conformance checks: every function, in every region and format, and every property.

The list is a constant, the same for every target. Each check has an id that says what it tests.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import hypothesis.strategies as st
from hypothesis.strategies import SearchStrategy
from torch import no_grad

from precision_lib.conformance.calls import PLAIN, Way, call, is_gradient
from precision_lib.conformance.compare import compare
from precision_lib.conformance.edges import GRADIENT_IS_OPTIONAL, edges_of
from precision_lib.conformance.failure import ConformanceFailure, told_as
from precision_lib.conformance.layouts import sliced
from precision_lib.conformance.objective_properties import OBJECTIVE_PROPERTIES
from precision_lib.conformance.pinned import PINNED
from precision_lib.conformance.properties import PROPERTIES, Function, Holds
from precision_lib.conformance.strategies import INPUT_FORMATS, REGIONS, Case, Region
from precision_lib.conformance.strategies.objectives import OBJECTIVE_REGIONS
from precision_lib.conformance.truth import Truth, truths_of
from precision_lib.conformance.variants import variants_of
from precision_lib.formats import FORMATS, Format, get_format
from precision_lib.targets import INTERFACE
from precision_lib.targets.objectives import OBJECTIVES, OPTIONS

#: (number of compared elements, largest error as a share of its limit)
Compared = tuple[int, float]
#: Share of the normal number of examples of a way or an edge: of the nine, of an objective.
_COST = (0.24, 0.12)
#: Share of a region's examples in fp16: a core takes it the way that it takes bf16.
_COST_OF_FP16 = 0.5
_ARGUMENTS = INTERFACE | OBJECTIVES
ALL_REGIONS = REGIONS | OBJECTIVE_REGIONS
FP32_OR_WIDER = (FORMATS["fp32"].dtype, FORMATS["fp64"].dtype)


@dataclass(frozen=True)
class Check:
    """One conformance test, ``test[id]``; the id is ``function-variant-format``.

    Attributes:
        judge: (function under test, case) -> what was compared; raises ConformanceFailure.
        meaning: what is hard, in one sentence, with a link where it was reported.
        cost: share of the normal number of examples.
        severity: of the region, see ``strategies.SEVERITIES``.
        is_note: a failure is said in the table, and fails no run.
        cpu_only: what a GPU does instead ends the process.
    """

    test: str
    id: str
    function: str
    cases: SearchStrategy[Case]
    judge: Callable[[Function, Case], Compared]
    meaning: str
    cost: float = 1.0
    severity: str = "training"
    is_note: bool = False
    cpu_only: bool = False

    @property
    def name(self) -> str:
        """``test[id]``, as pytest shows it."""
        return f"{self.test}[{self.id}]"


@cache
def checks() -> tuple[Check, ...]:
    """All checks, in a fixed order."""
    return (
        *_value_checks(),
        *_format_checks(),
        *_property_checks(),
        *_variant_checks(),
        *_edge_checks(),
        *_pinned_checks(),
    )


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
                    partial(_values_in_every_way if about.every_way else _values, function),
                    about.meaning,
                    about.cost * (_COST_OF_FP16 if fmt == "fp16" else 1.0),
                    about.severity,
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
            cases = about.cases or ALL_REGIONS[function][about.region].cases
            for fmt in about.formats:
                yield Check(
                    "test_property_holds",
                    f"{function}-{name}-{fmt}",
                    function,
                    cases(get_format(fmt)),
                    partial(_property, about.holds, function),
                    about.meaning,
                    about.cost,
                )


#: Regions whose cases are called in other ways, in this order, those that a function has.
_CALLED_IN_OTHER_WAYS = ("ordinary", "ragged", "masked_nonfinite", "minus_inf", "near_identical")


def _usual(regions: dict[str, Region], fmt: Format) -> SearchStrategy[Case]:
    """Cases of the regions that a variant is tried in."""
    names = [name for name in _CALLED_IN_OTHER_WAYS if name in regions]
    return st.one_of([regions[name].cases(fmt) for name in names])


def _formats(function: str) -> int:
    """How many formats a way is tried in: one with an optional argument, as without it in all."""
    return 1 if function in OPTIONS else 2


def _variant_checks() -> Iterator[Check]:
    for function, regions in ALL_REGIONS.items():
        for name, variant in variants_of(function, _ARGUMENTS[function]).items():
            for fmt in variant.formats[: _formats(function)]:
                yield Check(
                    "test_another_way_of_calling_changes_nothing",
                    f"{function}-{name}-{fmt}",
                    function,
                    _usual(regions, get_format(fmt)),
                    partial(_property, variant.holds, function),
                    variant.meaning,
                    cost=_COST[function in OBJECTIVES],
                )


def _edge_checks() -> Iterator[Check]:
    for function, regions in ALL_REGIONS.items():
        for name, (meaning, holds) in edges_of(function, _ARGUMENTS[function]).items():
            for fmt in ("bf16", "fp32")[: _formats(function)]:
                yield Check(
                    "test_edge_of_the_contract",
                    f"{function}-{name}-{fmt}",
                    function,
                    regions["ordinary"].cases(get_format(fmt)),
                    partial(_property, holds, function),
                    meaning,
                    cost=_COST[function in OBJECTIVES],
                    severity="edge",
                    is_note=name == "gradient_exists" and function in GRADIENT_IS_OPTIONAL,
                    cpu_only=name == "foreign_ids_are_not_token_0",
                )


def _pinned_checks() -> Iterator[Check]:
    for pinned in PINNED:
        yield Check(
            "test_pinned_example",
            f"{pinned.function}-{pinned.name}",
            pinned.function,
            st.just(Case(pinned.inputs)),
            partial(_values, pinned.function),
            f"{pinned.meaning}; see {pinned.link}",
        )


def _values(name: str, function: Function, case: Case) -> Compared:
    return _compared(name, function, case, truths_of(name, case))


def _compared(
    name: str, function: Function, case: Case, parts: dict[str, Truth], way: Way = PLAIN
) -> Compared:
    got = call(name, function, case.inputs, way)
    count, worst = 0, 0.0
    for part, truth in parts.items():
        if part in got:
            compared, share = compare(name, got[part], truth, case.inputs)
            count += compared
            # A 16-bit gradient is half a step of its own format off, whatever the core does.
            if got[part].dtype in FP32_OR_WIDER:
                worst = max(worst, share)
    return count, worst


#: What a case of the size that a trainer has is called with, beside the plain call.
_WAYS = {
    "under no_grad": Way(source_requires_grad=False, context=no_grad),
    "with inputs cut out of a buffer": Way(layout=sliced),
}


def _values_in_every_way(name: str, function: Function, case: Case) -> Compared:
    parts = truths_of(name, case)
    count, worst = _compared(name, function, case, parts)
    for what, way in _WAYS.items():
        with told_as(f"{name} fails {what}, and not in a plain call"):
            compared, share = _compared(name, function, case, parts, way)
        count, worst = count + compared, max(worst, share)
    return count, worst


def _fp32_or_wider(name: str, function: Function, case: Case) -> Compared:
    parts = call(name, function, case.inputs)
    results = {k: v for k, v in parts.items() if not is_gradient(k)}
    for part, x in results.items():
        if x.dtype not in FP32_OR_WIDER:
            raise ConformanceFailure(
                f"{name}: the {part} is {x.dtype}; the interface asks for float32 or wider, "
                "whatever the input format",
                case.inputs,
            )
    return len(results), 0.0


def _property(holds: Holds, name: str, function: Function, case: Case) -> Compared:
    return holds(name, function, case.inputs), 0.0
