"""Runs one check against one function.

The hazard. A check whose every example was filtered away, or whose limits were all infinite, has
compared nothing and must not be green. A core that changes a global switch of torch would change
the tests that follow. After an assertion on a GPU every later call fails, whoever makes it.
Shrinking is limited: a core that is wrong everywhere must not take minutes for each check.
Hypothesis mixes in numbers that it reads in the modules imported so far. The same seed would then
draw other examples in another process, so those numbers are left out.
"""

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any
from unittest import mock

import hypothesis
import torch
from hypothesis import example, given, settings
from hypothesis.errors import Flaky, HypothesisWarning
from hypothesis.internal.conjecture import providers
from torch import Tensor

from precision_lib.conformance.calls import check_unchanged
from precision_lib.conformance.checks import Check, Compared
from precision_lib.conformance.diagnosis import diagnosis, place_of
from precision_lib.conformance.failure import ConformanceFailure, DeviceLostError, is_fatal
from precision_lib.conformance.inputs import Argument, Inputs, Option
from precision_lib.conformance.profiles import CI, examples_of
from precision_lib.conformance.strategies import Case, within
from precision_lib.conformance.surroundings import surroundings_put_back
from precision_lib.runtime import state_put_back

#: Calls spent on making a failing input smaller.
_SHRINK_CALLS = 100
NOTHING_LEFT_OUT: Mapping[str, Sequence[Option]] = MappingProxyType({})


@dataclass(frozen=True)
class Outcome:
    """What a check that passed has seen; ``worst`` is the largest error as a share of its limit."""

    examples: int = 0
    compared: int = 0
    worst: float = 0.0


@dataclass
class _Search:
    """One check on one function, while Hypothesis draws its inputs."""

    check: Check
    function: Callable[..., Any]
    seen: Outcome = Outcome()
    failures: dict[str, ConformanceFailure] = field(default_factory=dict)
    budget: int = _SHRINK_CALLS

    def example(self, case: Case) -> None:
        """Judge one input; after the budget only inputs that are known to fail do so again."""
        if self.failures:
            self.budget -= 1
            if self.budget < 0 and repr(case) not in self.failures:
                return
        try:
            compared, worst = self._judged(case)
        except ConformanceFailure as failure:
            failure.recipe, failure.drawn = case.recipe, case
            if is_fatal(failure):
                raise DeviceLostError(self.check.function, failure) from failure
            self.failures[repr(case)] = failure
            raise
        seen = self.seen
        self.seen = Outcome(seen.examples + 1, seen.compared + compared, max(seen.worst, worst))
        hypothesis.target(min(worst, 1e9))

    def _judged(self, case: Case) -> Compared:
        """An error of the device can come up when the result is fetched: it is the function's."""
        try:
            return self.check.judge(self.function, case)
        except RuntimeError as error:
            if not is_fatal(error):
                raise
            message = f"{self.check.function} raised {type(error).__name__}: {error}"
            raise ConformanceFailure(message, case.inputs) from error


def run(
    check: Check,
    function: Callable[..., Any],
    profile: settings = CI,
    seed: int = 0,
    first: Sequence[Case] = (),
    taken: Mapping[str, Sequence[Option]] = NOTHING_LEFT_OUT,
) -> Outcome:
    """Draw inputs and judge each; climbs toward the largest error.

    Args:
        profile: how many examples, see ``profiles.py``.
        seed: which examples: the same seed draws the same ones, each check its own.
        first: cases that are tried before any is drawn.
        taken: argument to the values that the function takes, where it takes no others.

    Raises:
        ConformanceFailure: with a small failing input; also when nothing was compared, when the
            function does not repeat itself, and when it changed a global switch of torch (which is
            put back).
        DeviceLostError: the function ended the device, so that no other check can follow.
    """
    search = _Search(check, function)
    tried = _test(search, profile, seed, first, taken)
    with (
        _lost_device_first(),
        _imports_left_out(),
        state_put_back() as changed,
        surroundings_put_back() as moved,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", HypothesisWarning)  # a long repr is no error of the core
        try:
            tried()
        except Flaky:
            raise _not_repeated(search) from None
        except ConformanceFailure as smallest:
            _explain(smallest, search)
            raise
    if changed or moved:
        switches = [f"{name} from {a} to {b}" for name, (a, b) in changed.items()]
        what = ", ".join([*switches, *moved])
        raise ConformanceFailure(f"{check.function} changed {what}")
    if not search.seen.compared:
        raise ConformanceFailure(f"{check.name} compared nothing in {search.seen.examples} inputs")
    return search.seen


def _test(
    search: _Search,
    profile: settings,
    seed: int,
    first: Sequence[Case],
    taken: Mapping[str, Sequence[Option]],
) -> Callable[[], None]:
    """What Hypothesis runs: the cases of the check, ``first`` in front of them."""
    check = search.check
    examples = examples_of(check.cost, profile)

    @hypothesis.seed(zlib.crc32(check.name.encode()) ^ seed)
    @settings(profile, max_examples=examples)
    @given(check.cases.map(lambda case: within(case, taken)) if taken else check.cases)
    def drawn(case: Case) -> None:
        search.example(case)

    tried: Callable[[], None] = drawn
    for case in first:
        tried = example(case)(tried)
    return tried


def _explain(smallest: ConformanceFailure, search: _Search) -> None:
    """Add the largest error met, the cause, the region and the function's place to a failure."""
    check, function = search.check, search.function
    worst = max(failure.times for failure in search.failures.values())
    if smallest.times < worst:
        smallest.notes.append(f"largest error met: {worst:.3g} times the limit")
    smallest.cause = _cause(check, function, smallest)
    smallest.notes += [*smallest.cause, f"the region: {check.meaning}"]
    place = place_of(function)
    smallest.notes += [f"{check.function} is defined at {place}"] if place else []


def _cause(check: Check, function: Callable[..., Any], failure: ConformanceFailure) -> list[str]:
    """What tells the cause, of a check that compares values; a diagnosis never hides a failure."""
    if check.test != "test_values_are_within_their_bound":
        return []
    try:
        return diagnosis(check.function, function, failure.inputs)
    except Exception:
        return []


@contextmanager
def _imports_left_out() -> Iterator[None]:
    """Draw no number that Hypothesis has read in an imported module, where this release does so."""
    if not hasattr(providers, "_get_local_constants"):
        yield
        return
    none = type(providers.GLOBAL_CONSTANTS)()
    with (
        mock.patch.object(providers, "_get_local_constants", return_value=none),
        mock.patch.object(providers, "CONSTANTS_CACHE", _constants_cache()),
    ):
        yield


@cache
def _constants_cache() -> Any:
    """What Hypothesis keeps of the numbers that it mixes in, apart from that of other tests."""
    return type(providers.CONSTANTS_CACHE)(1024)


@contextmanager
def _lost_device_first() -> Iterator[None]:
    """On a lost device its generators cannot be put back either: the first error is what counts."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, DeviceLostError):
            raise error.__context__ from None
        raise


def _not_repeated(search: _Search) -> ConformanceFailure:
    """What to say of a function that failed on an input and then did not, or otherwise."""
    what = f"{search.check.function} gives another result when it is called again on the same input"
    first = next(iter(search.failures.values()), None)
    if first is None:
        return ConformanceFailure(what)
    failure = ConformanceFailure(f"{what}; at first: {first.args[0]}", first.inputs, first.times)
    failure.recipe, failure.drawn = first.recipe, first.drawn
    return failure


def on_device(name: str, function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The function called ``name`` with its inputs moved to ``device``; differentiable.

    What it changes in place is a moved copy, which nobody else sees: it is compared here.
    """
    if device == "cpu":
        return function

    def moved_and_called(**arguments: Argument) -> Any:
        inputs = Inputs.of(arguments)
        moved = inputs.each(lambda x: _OnDevice.apply(x, device))
        returned = function(**moved.keywords())
        check_unchanged(name, moved, inputs.each(Tensor.detach))
        return returned

    return moved_and_called


class _OnDevice(torch.autograd.Function):
    """A tensor on a device behind its own strides, which a copy of a slice would lose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: str) -> Tensor:
        ctx.device = x.device
        return _with_strides(x.detach(), device)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream.to(ctx.device), None


def _with_strides(x: Tensor, device: str) -> Tensor:
    y = x.to(device)
    if y.stride() == x.stride() or not x.numel():
        return y
    shared = [d for d in range(x.dim()) if x.stride(d) == 0]
    if shared:
        for d in shared:
            x = x.narrow(d, 0, 1)
        return _with_strides(x, device).expand(y.shape)
    size = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    buffer = y.new_full((size,), float("nan") if x.is_floating_point() else 1)
    strided = buffer.as_strided(x.shape, x.stride())
    return strided.copy_(y)
