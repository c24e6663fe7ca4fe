"""Running one check against one function.

The hazards. Hypothesis goes on shrinking a failure for minutes: a core that is wrong everywhere
would hold up a run of hundreds of checks. A check whose every example was filtered away, or whose
limits were all infinite, has compared nothing and must not be green.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from precision_lib.conformance.checks import Check
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.strategies import Case

_QUIET = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "report_multiple_bugs": False,
    "suppress_health_check": tuple(HealthCheck),
    "phases": (Phase.explicit, Phase.generate, Phase.target, Phase.shrink),
}
#: The same examples in every run.
CI = settings(max_examples=25, derandomize=True, **_QUIET)  # type: ignore[arg-type]
#: New examples in every run, many of them.
EXPLORE = settings(max_examples=1000, derandomize=False, **_QUIET)  # type: ignore[arg-type]
#: Calls spent on making a failing input smaller.
_SHRINK_CALLS = 150


@dataclass(frozen=True)
class Outcome:
    """What a check that passed has seen.

    Attributes:
        examples: number of inputs. compared: number of elements.
        worst: largest error as a share of its limit.
    """

    examples: int = 0
    compared: int = 0
    worst: float = 0.0


def on_device(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The function, computing on ``device`` with inputs and results on the CPU; differentiable."""
    if device == "cpu":
        return function

    def moved(**inputs: Any) -> Any:
        there = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        result = function(**there)
        if isinstance(result, tuple):
            return tuple(part.cpu() for part in result)
        return result.cpu()

    return moved


def run(check: Check, function: Callable[..., Any], profile: settings = CI) -> Outcome:
    """Draw inputs and judge each; climbs toward the largest error.

    Args:
        profile: how many examples and whether always the same; :data:`CI` or :data:`EXPLORE`.

    Returns:
        What was compared.

    Raises:
        ConformanceFailure: with a small failing input; also when nothing was compared.
    """
    seen = Outcome()
    failures: dict[str, ConformanceFailure] = {}
    budget = _SHRINK_CALLS

    def example(case: Case) -> None:
        nonlocal seen, budget
        if failures:
            budget -= 1
            if budget < 0 and repr(case) not in failures:
                return
        try:
            compared, worst = check.judge(function, dict(case.inputs))
        except ConformanceFailure as failure:
            failures[repr(case)] = failure
            raise
        seen = Outcome(seen.examples + 1, seen.compared + compared, max(seen.worst, worst))
        hypothesis.target(min(worst, 1e9))

    examples = max(3, round(check.cost * profile.max_examples))
    drawn = given(check.cases)(settings(profile, max_examples=examples)(example))
    if profile.derandomize:  # each check its own examples, the same in every run
        drawn = hypothesis.seed(zlib.crc32(check.name.encode()))(drawn)
    try:
        drawn()
    except ConformanceFailure as smallest:
        worst_met = max(failure.times for failure in failures.values())
        if smallest.times < worst_met:
            smallest.args = (f"{smallest}\n  largest error met: {worst_met:.3g} times the limit",)
        raise
    if not seen.compared:
        raise ConformanceFailure(f"{check.name} compared nothing in {seen.examples} inputs", {})
    return seen
