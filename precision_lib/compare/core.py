"""The core under test against a baseline, function by function.

A check that fails now and passed before is a regression; one that failed before is not. A check
that is missing makes the comparison inconclusive.
"""

from precision_lib.compare.comparison import Comparison
from precision_lib.record.changes import Change
from precision_lib.record.conformance import Conformance, FunctionCounts


def compare_cores(now: Conformance | None, known: Conformance | None) -> Comparison:
    """Compare what the conformance checks of both found, function by function."""
    if now is None or known is None:
        return Comparison()
    if now.target != known.target:
        other = f"other core: the baseline is of {known.target}, this run of {now.target}"
        return Comparison(inconclusive=(other,))
    if now.profile != known.profile:
        other = f"other examples: the baseline's profile is {known.profile}, here {now.profile}"
        return Comparison(inconclusive=(other,))
    result = Comparison()
    for name in now.functions:
        if name in known.functions:
            result += _compare(name, known.functions[name], now.functions[name])
    return result


def _compare(name: str, before: FunctionCounts, after: FunctionCounts) -> Comparison:
    new = sorted(set(after.failed) - set(before.failed))
    gone = sorted(set(before.failed) - set(after.failed))
    result = Comparison(compared=1)
    if new:
        result += Comparison(worse=(_change(name, before, after, new),))
    elif gone and after.tests >= before.tests:
        result += Comparison(better=(_change(name, before, after, gone),))
    # Another seed or release of Hypothesis draws other inputs, not half as many.
    few = after.inputs < before.inputs / 2 and not after.failed
    if after.tests < before.tests or few or not (after.compared or after.failed):
        fewer = (
            f"fewer checks: core {name} ran {after.tests} on {after.inputs} inputs that "
            f"compared {after.compared} elements, the baseline {before.tests} on {before.inputs}"
        )
        result += Comparison(inconclusive=(fewer,))
    return result


def _change(name: str, before: FunctionCounts, after: FunctionCounts, tests: list[str]) -> Change:
    """A function's checks that changed their outcome: by its error where that is what changed."""
    old, new = before.worst_over_limit, after.worst_over_limit
    more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
    failed_before, failed_after = (
        float(len({*tests} & {*counts.failed})) for counts in (before, after)
    )
    bad, good = (new, old) if failed_after else (old, new)
    measured = bad > max(good, 1)
    return Change(
        where="core",
        configuration="",
        component=name,
        metric="worst_over_limit" if measured else "failed_checks",
        before=old if measured else failed_before,
        after=new if measured else failed_after,
        limit=1.0 if measured else failed_before,
        unit="times the limit" if measured else "checks",
        reason=f"what FP32 arithmetic may do: {tests[0]}{more}",
    )
