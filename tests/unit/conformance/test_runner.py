"""What a core may not do to the suite, and what a run of a check draws, counts and says."""

import itertools
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis.internal.cache import LRUCache
from hypothesis.internal.conjecture import providers
from torch import Tensor

from precision_lib import ppo
from precision_lib.conformance import layouts, profiles, runner
from precision_lib.conformance.calls import call, upstream
from precision_lib.conformance.checks import Check, checks, find_check
from precision_lib.conformance.failure import ConformanceFailure, DeviceLostError
from precision_lib.conformance.inputs import NO_INPUTS, Inputs
from precision_lib.conformance.strategies import REGIONS, Case
from precision_lib.conformance.strategies.objectives import OBJECTIVE_REGIONS
from precision_lib.runtime import numerical_state
from precision_lib.targets import INTERFACE
from precision_lib.targets.objectives import OBJECTIVES
from tests.unit.simulated_devices import FIRST, two_devices


def bound_check(name: str) -> Check:
    """The check that values keep their bound, by function, region and format."""
    return find_check(f"test_values_are_within_their_bound[{name}]")


def whiten_of_constants() -> Check:
    return find_check("test_property_holds[whiten-constant_gives_zero-fp32]")


@pytest.mark.parametrize("in_place", [True, False])
def test_on_a_device_too_a_core_that_changes_its_input_is_named(in_place: bool) -> None:
    """It is given a moved copy there. A simulated device; the leaf has a gradient or not."""

    def values(values: Tensor, mask: Tensor, **_: Any) -> Tensor:
        assert values.device == mask.device == FIRST
        return (values.mul_(2) if in_place else values * 2)[mask].sum()

    inputs = Inputs({"values": torch.ones(1, 2), "mask": torch.tensor([[True, False]])})
    with two_devices():
        moved = runner.on_device("value_loss", values, "cpu:1")
        if in_place:
            with pytest.raises(ConformanceFailure, match="value_loss changed its input 'values'"):
                call("value_loss", moved, inputs)
        else:
            gradient = call("value_loss", moved, inputs)["gradient"]
            assert gradient.tolist() == [[2 * float(upstream(torch.Size())), 0.0]]
    assert inputs["values"].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("layout", [layouts.sliced, layouts.every_other, layouts.stride_0])
def test_on_a_device_too_a_tensor_keeps_its_strides_and_its_gradient(layout: Any) -> None:
    """A simulated device; a slice and rows of stride 0 would become dense in a plain copy."""
    x = layout(torch.tensor([[1.0, 2.0], [1.0, 2.0]])).requires_grad_(True)
    with two_devices():
        moved = runner._OnDevice.apply(x, "cpu:1")
        assert moved.stride() == x.stride()
        assert moved.tolist() == [[1.0, 2.0], [1.0, 2.0]]
        (gradient,) = torch.autograd.grad((moved * moved).sum(), x)
    assert gradient.tolist() == [[2.0, 4.0], [2.0, 4.0]]


ASSERTION = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronous"


@pytest.mark.parametrize("kind", [RuntimeError, getattr(torch, "AcceleratorError", RuntimeError)])
@pytest.mark.parametrize("when", ["called", "fetched", "put back"])
def test_a_function_that_ends_the_device_is_named_at_once(
    kind: type[RuntimeError], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one call, whether the error comes up in it or where its result is fetched."""
    calls = 0

    def asserting(x: Tensor, mask: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if when == "fetched":
            return x
        raise kind(ASSERTION)

    def raising(*_: Any) -> None:
        raise kind(ASSERTION)

    if when == "fetched":
        monkeypatch.setattr(Tensor, "cpu", raising)
    if when == "put back":
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", raising)
    check = bound_check("whiten-ordinary-fp32")
    said = f"whiten ended the device for this process: whiten raised {kind.__name__}: CUDA error"
    with pytest.raises(DeviceLostError, match=said) as lost:
        runner.run(check, asserting)
    assert calls == 1
    assert lost.value.failure.drawn is not None
    assert "\n" not in str(lost.value)


def test_another_error_of_a_core_does_not_end_the_device() -> None:
    check = bound_check("whiten-ordinary-fp32")
    with pytest.raises(ConformanceFailure, match="whiten raised RuntimeError: CUDA out of memory"):
        runner.run(check, raising(RuntimeError("CUDA out of memory")))


def raising(error: Exception) -> Any:
    def core(**_: Any) -> None:
        raise error

    return core


def test_a_check_that_compared_nothing_fails() -> None:
    check = Check(
        "test", "id", "whiten", st.just(Case(NO_INPUTS)), lambda function, case: (0, 0.0), ""
    )
    with pytest.raises(ConformanceFailure, match=r"test\[id\] compared nothing in"):
        runner.run(check, ppo.whiten)


@pytest.mark.parametrize("left_out", [True, False])
def test_examples_do_not_depend_on_what_is_imported(
    left_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault is Hypothesis as it is, which draws numbers that stand in a module."""
    if not left_out:
        monkeypatch.setattr(runner, "_imports_left_out", nullcontext)
    drawn: list[list[int]] = []
    integers: Any = type(providers.GLOBAL_CONSTANTS.integers)
    for numbers in ((), range(7000, 9000)):
        constants = type(providers.GLOBAL_CONSTANTS)(integers=integers(numbers))
        monkeypatch.setattr(providers, "_get_local_constants", lambda found=constants: found)
        monkeypatch.setattr(providers, "CONSTANTS_CACHE", LRUCache(1024))
        inputs: list[int] = []
        cases = st.integers(0, 10_000).map(lambda n: Case(Inputs({}, {"n": n})))
        check = Check("test", "id", "whiten", cases, partial(_note_number, inputs), "")
        runner.run(check, ppo.whiten, settings(profiles.CI, max_examples=200))
        drawn.append(inputs)
    assert (drawn[0] == drawn[1]) == left_out


def _note_number(numbers: list[int], _: Callable[..., Any], case: Case) -> tuple[int, float]:
    numbers.append(int(case.inputs.number("n")))
    return 1, 0.0


def test_the_outcome_counts_inputs_and_elements_and_keeps_the_worst() -> None:
    shares = iter([0.5, 0.25])
    cases = st.sampled_from([Case(Inputs({}, {"x": x})) for x in (1.0, 2.0)])
    check = Check("t", "i", "whiten", cases, lambda function, case: (3, next(shares, 0.0)), "")
    outcome = runner.run(check, ppo.whiten)
    assert outcome.examples >= 2
    assert outcome.compared == 3 * outcome.examples
    assert outcome.worst == 0.5


def test_a_core_that_is_always_wrong_is_reported_with_a_small_input_and_soon() -> None:
    calls = 0

    def wrong(x: Tensor, mask: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(x, 17.0)

    check = bound_check("whiten-ordinary-bf16")
    with pytest.raises(ConformanceFailure, match=r"got 0x1\.1000000000000p\+4 \(17\)") as failure:
        runner.run(check, wrong)
    assert calls < 400
    assert "(1, 1)" in str(failure.value), "the smallest input has one element"


def test_the_search_is_told_every_error_and_climbs_to_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hypothesis climbs toward what ``target`` is told, in a phase that a profile can leave out."""
    check = bound_check("masked_mean-ordinary-fp32")
    told: list[float] = []
    seen: list[float] = []
    monkeypatch.setattr("hypothesis.target", told.append)

    def judge(_function: Any, case: Case) -> tuple[int, float]:
        seen.append(float(case.inputs["x"][case.inputs["mask"]].abs().sum()))
        return 1, seen[-1]

    runner.run(replace(check, judge=judge), ppo.masked_mean)
    assert told == seen
    assert len(set(told)) > 10
    assert all(Phase.target in profile.phases for profile in (profiles.CI, profiles.EXPLORE))


def test_a_first_look_runs_every_check_on_fewer_examples() -> None:
    """Beside the simplest input, whose values are 0, at least one more."""
    few, usual = (
        [profiles.examples_of(check.cost, profile) for check in checks()]
        for profile in (profiles.QUICK, profiles.CI)
    )
    assert min(few) == 2
    assert all(a <= b for a, b in zip(few, usual, strict=True))
    assert sum(few) < sum(usual) / 2


def test_the_input_of_a_large_failure_is_printed_with_its_recipe_and_what_is_hard() -> None:
    check = bound_check("token_logprobs-large_vocabulary-fp32")
    with pytest.raises(ConformanceFailure) as failure:
        runner.run(check, lambda logits, tokens: torch.ones(tokens.shape))
    message = str(failure.value)
    assert "recipe='" in message
    assert "recipe=''" not in message
    assert f"the region: {check.meaning}" in message


@pytest.mark.parametrize(
    ("switch", "said"),
    [
        (
            lambda: torch.set_default_dtype(torch.float64),
            "changed default_dtype from torch.float32 to torch.float64",
        ),
        (
            lambda: torch.set_autocast_enabled("cpu", True),
            "changed autocast_cpu from False to True",
        ),
        (lambda: torch.set_flush_denormal(True), "changed flush_denormal from False to True"),
        (lambda: torch.set_default_device("meta"), "changed default_device from cpu to meta"),
        (lambda: torch.set_grad_enabled(False), "left gradients switched off"),
    ],
    ids=["dtype", "autocast", "denormals", "device", "grad"],
)
def test_a_core_that_changes_a_global_switch_is_named_and_the_switch_put_back(
    switch: Callable[[], object], said: str
) -> None:
    def switching(**inputs: Any) -> Tensor:
        result = ppo.whiten(**inputs)
        switch()
        return result

    check = whiten_of_constants()
    before = numerical_state()
    with pytest.raises(ConformanceFailure, match=re.escape(f"whiten {said}")):
        runner.run(check, switching)
    assert numerical_state() == before


def test_a_core_that_changes_the_device_and_raises_does_not_harm_the_next_input() -> None:
    def switching(**inputs: Any) -> Tensor:
        torch.set_default_device("meta")
        raise RuntimeError("later")

    check = whiten_of_constants()
    with pytest.raises(
        ConformanceFailure, match=r"whiten raised RuntimeError: later \(at test_run"
    ):
        runner.run(check, switching)
    assert torch.get_default_device().type == "cpu"


def test_a_core_that_does_not_repeat_itself_is_named_as_such() -> None:
    """A finding like any other: counted, listed, with the line that repeats it."""
    calls = itertools.count()

    def unsteady(x: Tensor, mask: Tensor) -> Tensor:
        return ppo.masked_mean(x, mask) + (0.1 if next(calls) % 3 == 2 else 0)

    check = bound_check("masked_mean-ordinary-fp32")
    said = "masked_mean gives another result when it is called again on the same input; at first: "
    with pytest.raises(ConformanceFailure, match=said):
        runner.run(check, unsteady)


def test_a_core_that_draws_random_numbers_leaves_the_generators_alone() -> None:
    def drawing(**inputs: Any) -> Tensor:
        torch.rand(1)
        return ppo.whiten(**inputs)

    before = numerical_state()
    runner.run(whiten_of_constants(), drawing)
    assert numerical_state() == before


def test_masked_slots_that_are_not_zero_are_a_failed_property() -> None:
    def left_in(x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, ppo.whiten(x, mask), 5.0)

    check = find_check("test_property_holds[whiten-masked_contents_do_not_matter-fp32]")
    with pytest.raises(ConformanceFailure, match="the result in masked slots is not 0"):
        runner.run(check, left_in)


def test_checks_cover_every_function_region_and_format_once() -> None:
    names = [check.name for check in checks()]
    assert len(names) == len(set(names))
    assert set(REGIONS) == set(INTERFACE)
    assert set(OBJECTIVE_REGIONS) == set(OBJECTIVES)
    assert {check.function for check in checks()} == set(INTERFACE) | set(OBJECTIVES)
    for function, regions in (REGIONS | OBJECTIVE_REGIONS).items():
        for region, about in regions.items():
            for fmt in about.formats:
                assert f"test_values_are_within_their_bound[{function}-{region}-{fmt}]" in names


def test_the_same_examples_are_drawn_in_every_run() -> None:
    check = bound_check("gae-ordinary-fp16")
    seen: list[list[str]] = [[], []]
    for mine in seen:
        recording = Check(
            check.test,
            check.id,
            check.function,
            check.cases.map(lambda case, mine=mine: mine.append(repr(case)) or case),  # type: ignore[misc]
            check.judge,
            check.meaning,
        )
        runner.run(recording, ppo.gae)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 10


def test_a_loss_that_ignores_what_comes_from_above_is_rejected() -> None:
    class Ignoring(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
            ctx.save_for_backward(mask)
            return ppo.masked_mean(x, mask)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
            (mask,) = ctx.saved_tensors
            return mask / mask.sum(), None

    check = bound_check("masked_mean-ordinary-fp32")
    with pytest.raises(ConformanceFailure, match="values of the gradient are wrong"):
        runner.run(check, lambda x, mask: Ignoring.apply(x, mask))


def test_an_unknown_check_is_named() -> None:
    with pytest.raises(ValueError, match=r"no conformance check is called 'test_x\[y\]'"):
        find_check("test_x[y]")
