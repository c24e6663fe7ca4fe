"""The regions have the difficulty that they name, in every format, and the cases repeat."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from torch import Tensor

from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.strategies import REGIONS, Case, right_padded
from precision_lib.conformance.written_case import read_case
from precision_lib.formats import FORMATS, Format, round_to
from precision_lib.targets import INTERFACE
from tests.unit.conformance.region_claims import CLAIMS, log_ratio, numbers, tensors

EXAMPLES = 12
ONCE = [
    (function, name)
    for function, regions in REGIONS.items()
    for name in regions
    if name != "as_trained"
]


def draw(function: str, region: str, fmt: str, examples: int = EXAMPLES) -> list[Case]:
    cases: list[Case] = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
    )
    @given(REGIONS[function][region].cases(FORMATS[fmt]))
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    return cases


drawn = cache(draw)


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, NaN equal to NaN."""
    if not isinstance(a, Tensor):
        return bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    equal = (a == b) & (a.signbit() == b.signbit())
    return bool((equal | (a.isnan() & b.isnan())).all())


def check_contract(function: str, case: Case, fmt: Format) -> None:
    """Names, dtypes, shapes, a right-padded mask with a real token, finite real tokens."""
    assert list(case.inputs.keywords()) == list(INTERFACE[function])
    shapes = {name: x.shape for name, x in tensors(case).items()}
    assert all(x.dtype == fmt.dtype for x in tensors(case).values())
    assert len(set(shapes.values())) == 1
    shape = next(iter(shapes.values()))
    assert len(shape) == (3 if "logits" in case.inputs else 2)
    mask, tokens = case.inputs.mask, case.inputs.tensors.get("tokens")
    if mask is not None:
        assert mask.dtype == torch.bool
        assert mask.any()
        assert torch.equal(mask, right_padded(mask.sum(1).tolist(), shape[1]))
    if tokens is not None:
        assert tokens.dtype == torch.int64
        assert tokens.shape == shape[:2]
        assert ((tokens >= 0) & (tokens < shape[2])).all()
    for name in tensors(case):
        x = numbers(case, name)
        assert not x.isnan().any()
        assert name == "logits" or x.isfinite().all()
        assert torch.equal(round_to(x, fmt), x)
        assert "logprobs" not in name or (x <= 0).all()


def test_every_function_and_region_has_a_claim() -> None:
    assert {f: set(regions) - {"as_trained"} for f, regions in REGIONS.items()} == {
        f: set(claims) for f, claims in CLAIMS.items()
    }
    assert list(REGIONS) == list(INTERFACE)


@pytest.mark.parametrize(("function", "region"), ONCE)
def test_cases_have_the_difficulty_that_the_region_names(function: str, region: str) -> None:
    about, claim = REGIONS[function][region], CLAIMS[function][region]
    for fmt in about.formats:
        cases = drawn(function, region, fmt)
        assert len(cases) == EXAMPLES
        for case in cases:
            check_contract(function, case, FORMATS[fmt])
            assert claim(case, FORMATS[fmt]), f"{fmt}, {about.meaning}: {case!r}"


@pytest.mark.parametrize(("function", "region"), ONCE)
def test_the_same_draws_give_the_same_cases_bit_for_bit(function: str, region: str) -> None:
    again = draw(function, region, "bf16")
    for first, second in zip(drawn(function, region, "bf16"), again, strict=True):
        assert first.recipe == second.recipe
        others = second.inputs.keywords()
        for name, value in first.inputs.keywords().items():
            assert same(value, others[name])


def is_k3(case: Case) -> bool:
    return case.inputs.word("estimator") == "k3"


def overflows_on_the_way(case: Case) -> bool:
    rewards, following = case.inputs["rewards"][:, :-1], case.inputs["values"][:, 1:]
    target = rewards.double() + case.inputs.number("gamma") * following
    return bool((target[case.inputs["mask"][:, 1:]].abs() > FORMATS["fp32"].largest).any())


SOMETIMES: dict[tuple[str, str, str], Callable[[Case], Any]] = {
    ("whiten", "ragged", "an empty row"): lambda c: (c.inputs["mask"].sum(1) == 0).any(),
    ("whiten", "ordinary", "padding"): lambda c: not c.inputs["mask"].all(),
    ("whiten", "ordinary", "no padding"): lambda c: c.inputs["mask"].all(),
    ("gae", "masked_nonfinite", "NaN right behind the last token"): lambda c: any(
        row[int(m.sum())].isnan()
        for row, m in zip(c.inputs["rewards"], c.inputs["mask"], strict=True)
        if not m.all()
    ),
    ("token_logprobs", "minus_inf", "a token of probability 0"): lambda c: (
        numbers(c, "logits").gather(-1, c.inputs["tokens"][..., None]).isinf().any()
    ),
    ("token_logprobs", "confident", "a token off the peak"): lambda c: (
        numbers(c, "logits").argmax(-1) != c.inputs["tokens"]
    ).any(),
    ("token_logprobs", "confident", "a token on the peak"): lambda c: (
        numbers(c, "logits").argmax(-1) == c.inputs["tokens"]
    ).any(),
    ("token_logprobs", "large_offset", "an offset near 1e4"): lambda c: (
        numbers(c, "logits").abs().max() > 9e3
    ),
    ("token_logprobs", "confident", "a probability below FP32"): lambda c: (
        numbers(c, "logits").amax(-1) - numbers(c, "logits").amin(-1) > 104
    ).any(),
    ("kl_penalty", "far", "k3 beyond FP32"): lambda c: is_k3(c) and log_ratio(c).min() < -89,
    ("kl_penalty", "far", "k3 just inside FP32"): lambda c: (
        is_k3(c) and -88.7 < log_ratio(c).min() < -80
    ),
    ("kl_penalty", "far", "a large positive ratio"): lambda c: log_ratio(c).max() > 80,
    ("masked_mean", "long", "a count beyond 2,048"): lambda c: c.inputs["mask"].sum() > 2048,
    ("group_advantages", "binary", "a group all right"): lambda c: (
        c.inputs["rewards"].min(1).values == 1
    ).any(),
    ("group_advantages", "binary", "a mixed group"): lambda c: (
        c.inputs["rewards"].min(1).values < c.inputs["rewards"].max(1).values
    ).any(),
    ("policy_loss", "far_positive", "an advantage of 0"): lambda c: (
        numbers(c, "advantages") == 0
    ).any(),
    ("policy_loss", "far_harmful", "a loss that fits into FP32"): lambda c: log_ratio(c).max() < 80,
    ("policy_loss", "at_the_clip", "the upper edge"): lambda c: log_ratio(c).max() > 0,
    ("policy_loss", "at_the_clip", "the lower edge"): lambda c: log_ratio(c).min() < 0,
    ("gae", "near_overflow", "reward plus next value beyond FP32"): overflows_on_the_way,
}


@pytest.mark.parametrize(("function", "region", "what"), SOMETIMES)
def test_a_hundred_cases_include(function: str, region: str, what: str) -> None:
    cases = draw(function, region, "fp32", 100)
    assert any(bool(SOMETIMES[function, region, what](case)) for case in cases)


@pytest.mark.parametrize("region", ["near_identical", "far", "tiny_logprobs"])
def test_half_of_the_cases_are_k3_where_it_is_what_is_hard(region: str) -> None:
    cases = draw("kl_penalty", region, "fp32", 100)
    assert 2 * sum(map(is_k3, cases)) >= len(cases)


@pytest.mark.parametrize("function", list(REGIONS))
def test_the_print_of_a_small_case_reads_back_as_the_case(function: str) -> None:
    printed = 0
    for region in set(REGIONS[function]) - {"as_trained"}:
        for case in drawn(function, region, "fp32"):
            if "recipe" in repr(case):
                continue
            again = read_case(repr(case))
            pairs = zip(*(c.inputs.keywords().items() for c in (case, again)), strict=True)
            assert all(a == b and same(x, y) for (a, x), (b, y) in pairs)
            printed += 1
    assert printed > 10


def test_a_large_case_prints_its_recipe_and_little_else() -> None:
    text = repr(drawn("token_logprobs", "large_vocabulary", "bf16")[0])
    assert "seed=" in text or "kind=flat" in text
    assert "<bf16 (1, 1, 151936): " in text
    assert len(text) < 600


def test_special_values_print_exactly() -> None:
    x = torch.tensor([[0.1, -0.0, torch.nan, torch.inf, 2.0**-149, 3.0]])
    text = repr(Case(Inputs({"x": x})))
    assert "'0x1.99999ap-4 -0x0p+0 nan inf 0x1p-149 0x1.8p+1'" in text
    assert same(read_case(text).inputs["x"], x)


def test_a_failure_shrinks_to_one_sequence_and_one_round_number() -> None:
    smallest = find(
        REGIONS["whiten"]["ordinary"].cases(FORMATS["bf16"]),
        lambda case: numbers(case, "x").numel() >= 3 and 1.5 <= float(numbers(case, "x").max()) < 3,
        settings=settings(database=None, derandomize=True, deadline=None, max_examples=500),
    )
    assert len(smallest.inputs["x"]) == 1
    assert smallest.inputs["x"].unique().tolist() == [0.0, 1.5]
    assert smallest.inputs["x"].count_nonzero() == 1


def test_seed_zero_means_a_background_of_zeros() -> None:
    smallest = find(
        REGIONS["whiten"]["ordinary"].cases(FORMATS["fp32"]),
        lambda case: case.inputs["x"].numel() >= 20,
        settings=settings(database=None, derandomize=True, deadline=None, max_examples=500),
    )
    assert "seed=0 " in smallest.recipe
    assert np.array_equal(smallest.inputs["x"].numpy(), np.zeros((3, 7)))
