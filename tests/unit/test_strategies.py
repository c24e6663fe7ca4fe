"""The regions have the difficulty that they name, in every format, and the cases repeat."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from torch import Tensor

from precision_lib.conformance.strategies import REGIONS, Case, hex_tensor, right_padded
from precision_lib.formats import FORMATS, Format, round_to, ulp

EXAMPLES = 20
ARGUMENTS = {
    "token_logprobs": ["logits", "tokens"],
    "entropy": ["logits"],
    "kl_penalty": ["policy_logprobs", "ref_logprobs", "estimator"],
    "masked_mean": ["x", "mask"],
    "whiten": ["x", "mask"],
    "gae": ["rewards", "values", "mask", "gamma", "lam"],
    "group_advantages": ["rewards"],
    "policy_loss": ["logprobs", "old_logprobs", "advantages", "mask", "clip_range"],
    "value_loss": ["values", "old_values", "returns", "mask", "clip_range"],
}
EVERYWHERE = [
    (function, name, fmt)
    for function, regions in REGIONS.items()
    for name, region in regions.items()
    for fmt in region.formats
]
ONCE = [(function, name) for function, regions in REGIONS.items() for name in regions]


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


def numbers(case: Case, name: str) -> Tensor:
    """The real tokens of a tensor as float64, or all of it where there is no mask."""
    x: Tensor = case.inputs[name]
    mask = case.inputs.get("mask")
    return (x if mask is None else x[mask]).double()


def tensors(case: Case) -> dict[str, Tensor]:
    """The floating-point tensors of a case."""
    return {
        name: x
        for name, x in case.inputs.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }


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


Claim = Callable[[Case, Format], bool]


def log_ratio(case: Case) -> Tensor:
    first, second = list(tensors(case))[:2]
    return numbers(case, first) - numbers(case, second)


def moves(case: Case) -> Tensor:
    return numbers(case, "values") - numbers(case, "old_values")


def errors(case: Case) -> Tensor:
    return numbers(case, "values") - numbers(case, "returns")


def always(case: Case, _: Format) -> bool:
    """Nothing beyond what every case promises."""
    return bool(case.inputs)


def masked_nonfinite(case: Case, _: Format) -> bool:
    mask = case.inputs["mask"]
    return all(bool((~x[~mask].isfinite()).any()) for x in tensors(case).values())


def single(case: Case, _: Format) -> bool:
    return int(case.inputs["mask"].sum()) == 1


def populations(case: Case) -> list[Tensor]:
    """The real tokens of a batch, or each group of rewards."""
    if "x" in case.inputs:
        return [numbers(case, "x")]
    return list(numbers(case, "rewards"))


def each(claim: Callable[[Tensor, Format], Any]) -> Claim:
    return lambda case, fmt: all(bool(claim(x, fmt)) for x in populations(case))


def large_mean(x: Tensor, _: Format) -> bool:
    return 8 < float(x.mean().abs() / x.std()) < 1e4 and x.unique().numel() >= 3


def one_ulp_apart(x: Tensor, fmt: Format) -> bool:
    low, high = x.abs().unique().tolist()
    counts = x.unique(return_counts=True)[1].tolist()
    return 1 in counts and high - low == float(ulp(torch.tensor(low), fmt))


def heavy_tails(x: Tensor, _: Format) -> bool:
    second, first = x.abs().topk(2).values.flip(0).tolist()
    return bool(900 * second <= first <= 10_500)


POPULATIONS: dict[str, Claim] = {
    "large_mean": each(large_mean),
    "constant": each(lambda x, _: x.unique().numel() == 1 and x.numel() > 1),
    "nearly_constant": each(one_ulp_apart),
    "ties": each(lambda x, _: x.unique().numel() < x.numel()),
    "heavy_tails": each(heavy_tails),
    "near_overflow": each(lambda x, fmt: x.abs().max() ** 2 > fmt.largest),
    "subnormal": each(
        lambda x, fmt: x.abs().max() ** 2 < fmt.smallest_subnormal and x.unique().numel() > 1
    ),
    "small_spread": each(lambda x, _: 0 < float(x.std()) < 0.03),
}


def gap(case: Case, _: Format) -> Tensor:
    top = numbers(case, "logits").topk(2, dim=-1).values
    return (top[..., 0] - top[..., 1]).flatten()


def offset(case: Case, _: Format) -> bool:
    x = numbers(case, "logits")
    return bool((x.sign() == x.flatten()[0].sign()).all() and x.abs().median() >= 50)


LOGITS: dict[str, Claim] = {
    "ordinary": always,
    "large_offset": offset,
    "minus_inf": lambda c, _: bool(
        (numbers(c, "logits") == -torch.inf).any(-1).all()
        and numbers(c, "logits").isfinite().any(-1).all()
    ),
    "confident": lambda c, fmt: bool(((gap(c, fmt) >= 5) & (gap(c, fmt) <= 90)).all()),
    "near_overflow": lambda c, fmt: bool(numbers(c, "logits").abs().max() >= fmt.largest / 2),
    "subnormal": lambda c, fmt: bool(
        0 < numbers(c, "logits").abs().max() <= 2 * fmt.smallest_normal
    ),
    "flat": lambda c, _: all(
        row.sort().values[:-1].unique().numel() == 1 and row.max() == 0
        for row in numbers(c, "logits").flatten(0, 1)
    ),
    "ties": lambda c, fmt: bool((gap(c, fmt) == 0).all()),
    "large_vocabulary": lambda c, _: c.inputs["logits"].shape[-1] == 151_936,
    "single_token": lambda c, _: tuple(c.inputs["logits"].shape) == (1, 1, 2),
}

KL: dict[str, Claim] = {
    "near_identical": lambda c, fmt: bool(
        0 < log_ratio(c).abs().max() <= 2 + 40 * fmt.machine_epsilon
    ),
    "ordinary": lambda c, _: bool(0 < log_ratio(c).abs().max() <= 20),
    "far": lambda c, _: bool(log_ratio(c).abs().max() >= 9),
    "identical": lambda c, _: bool((log_ratio(c) == 0).all()),
    "tiny_logprobs": lambda c, _: bool(0 < numbers(c, "policy_logprobs").abs().max() < 5e-4),
    "low_probability": lambda c, _: bool(numbers(c, "policy_logprobs").max() <= -29),
}


def gae_results(case: Case) -> tuple[Tensor, Tensor]:
    """Textbook GAE in float64; the library's oracle is not needed to see that a number fits."""
    mask, discount = case.inputs["mask"], case.inputs["gamma"] * case.inputs["lam"]
    rewards, values = (case.inputs[n].double().where(mask, 0) for n in ("rewards", "values"))
    advantages = torch.zeros_like(values)
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=1)
    deltas = rewards + case.inputs["gamma"] * following - values
    carried = torch.zeros(len(values), dtype=torch.float64)
    for t in reversed(range(values.shape[1])):
        carried = deltas[:, t] + discount * carried
        advantages[:, t] = carried
    return advantages[mask], (advantages + values)[mask]


def gae_fits(case: Case, fmt: Format) -> bool:
    largest = max(float(x.abs().max()) for x in gae_results(case))
    inputs = max(float(numbers(case, n).abs().max()) for n in ("rewards", "values"))
    return largest < FORMATS["fp32"].largest and inputs >= fmt.largest / 64


def sparse(case: Case, _: Format) -> bool:
    rewards, mask = case.inputs["rewards"], case.inputs["mask"]
    last = torch.where(mask.any(1), mask.sum(1) - 1, -1)
    is_last = torch.arange(mask.shape[1]) == last[:, None]
    return bool((rewards[mask & ~is_last] == 0).all() and (rewards[is_last] != 0).all())


RAGGED: dict[str, Claim] = {
    "ordinary": always,
    "ragged": always,
    "masked_nonfinite": masked_nonfinite,
    "single_token": single,
}
GAE: dict[str, Claim] = RAGGED | {
    "long": lambda c, _: c.inputs["rewards"].shape[1] >= 256 and c.inputs["gamma"] == 0.999,
    "sparse_terminal": sparse,
    "large_values": lambda c, fmt: large_mean(numbers(c, "values"), fmt),
    "near_overflow": gae_fits,
    "undiscounted": lambda c, _: c.inputs["gamma"] == c.inputs["lam"] == 1,
}


def policy_gain(case: Case) -> Tensor:
    return log_ratio(case).exp() * numbers(case, "advantages")


def ratio_overflows_but_not_the_product(case: Case, _: Format) -> bool:
    sums = policy_gain(case).abs().sum()
    return bool(log_ratio(case).max() > 88.73 and sums < FORMATS["fp32"].largest)


def at_the_clip(case: Case, fmt: Format) -> bool:
    d, clip = log_ratio(case), case.inputs["clip_range"]
    edge = torch.where(d > 0, torch.tensor(clip), torch.tensor(-clip)).double().log1p()
    return bool(((d - edge).abs() <= 4 * ulp(edge, fmt)).all())


POLICY: dict[str, Claim] = RAGGED | {
    "identical": lambda c, _: bool((log_ratio(c) == 0).all()),
    "far_positive": lambda c, _: bool(
        log_ratio(c).max() >= 95 and (numbers(c, "advantages") >= 0).all()
    ),
    "far_negative": lambda c, _: bool(log_ratio(c).min() <= -95),
    "far_harmful": lambda c, _: bool(
        log_ratio(c).max() >= 9 and (numbers(c, "advantages") < 0).all()
    ),
    "tiny_advantages": ratio_overflows_but_not_the_product,
    "zero_advantages": lambda c, _: bool(
        numbers(c, "advantages")[log_ratio(c).abs().argmax()] == 0
        and log_ratio(c).abs().max() >= 95
    ),
    "at_the_clip": at_the_clip,
    "near_overflow": lambda c, fmt: bool(
        numbers(c, "advantages").abs().max() >= fmt.largest / 1024
        and policy_gain(c).mean().abs() < FORMATS["fp32"].largest
    ),
    "low_probability": lambda c, fmt: bool(
        numbers(c, "logprobs").max() <= -29
        and (log_ratio(c).abs() <= 25 * ulp(numbers(c, "old_logprobs"), fmt)).all()
    ),
}


def at_the_value_clip(case: Case, fmt: Format) -> bool:
    steps = ulp(numbers(case, "values").abs() + case.inputs["clip_range"], fmt)
    return bool(((moves(case).abs() - case.inputs["clip_range"]).abs() <= 4 * steps).all())


VALUE: dict[str, Claim] = RAGGED | {
    "identical": lambda c, _: bool((moves(c) == 0).all() and (errors(c) == 0).all()),
    "large_values": lambda c, fmt: large_mean(numbers(c, "values"), fmt),
    "clipped": lambda c, _: bool(
        (moves(c).abs() > c.inputs["clip_range"]).all() and moves(c).min() < 0 < moves(c).max()
    ),
    "at_the_clip": at_the_value_clip,
    "near_overflow": lambda c, fmt: bool(errors(c).square().max() > fmt.largest),
    "large_errors": lambda c, _: bool(
        2.0**100 < errors(c).square().sum() < FORMATS["fp32"].largest / 2
    ),
    "subnormal": lambda c, fmt: bool(0 < errors(c).square().max() < fmt.smallest_subnormal),
}

CLAIMS: dict[str, dict[str, Claim]] = {
    "token_logprobs": LOGITS,
    "entropy": LOGITS,
    "kl_penalty": KL,
    "masked_mean": RAGGED
    | {
        "large_mean": POPULATIONS["large_mean"],
        "long": lambda c, _: c.inputs["x"].shape[1] >= 256,
        "cancellation": each(lambda x, _: x.abs().sum() > 100 * x.sum().abs()),
        "near_overflow": each(lambda x, fmt: x.sum().abs() > fmt.largest > x.mean().abs()),
        "heavy_tails": POPULATIONS["heavy_tails"],
    },
    "whiten": RAGGED | POPULATIONS,
    "gae": GAE,
    "group_advantages": POPULATIONS
    | {
        "ordinary": always,
        "binary": each(lambda x, _: ((x == 0) | (x == 1)).all()),
        "one_sample": each(lambda x, _: x.numel() == 1),
        "openrlhf_case": each(lambda x, _: x.abs().max() == 1.0078125 * x.abs().min()),
    },
    "policy_loss": POLICY,
    "value_loss": VALUE,
}


def check_contract(function: str, case: Case, fmt: Format) -> None:
    """Names, dtypes, shapes, a right-padded mask with a real token, finite real tokens."""
    assert list(case.inputs) == ARGUMENTS[function]
    shapes = {name: x.shape for name, x in tensors(case).items()}
    assert all(x.dtype == fmt.dtype for x in tensors(case).values())
    assert len(set(shapes.values())) == 1
    shape = next(iter(shapes.values()))
    assert len(shape) == (3 if "logits" in case.inputs else 2)
    mask, tokens = case.inputs.get("mask"), case.inputs.get("tokens")
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
    assert {f: set(regions) for f, regions in REGIONS.items()} == {
        f: set(claims) for f, claims in CLAIMS.items()
    }
    assert list(REGIONS) == list(ARGUMENTS)


@pytest.mark.parametrize(("function", "region", "fmt"), EVERYWHERE)
def test_cases_have_the_difficulty_that_the_region_names(
    function: str, region: str, fmt: str
) -> None:
    cases = drawn(function, region, fmt)
    assert len(cases) == EXAMPLES
    claim = CLAIMS[function][region]
    for case in cases:
        check_contract(function, case, FORMATS[fmt])
        assert claim(case, FORMATS[fmt]), f"{REGIONS[function][region].meaning}: {case!r}"


@pytest.mark.parametrize(("function", "region"), ONCE)
def test_the_same_draws_give_the_same_cases_bit_for_bit(function: str, region: str) -> None:
    again = draw(function, region, "bf16")
    for first, second in zip(drawn(function, region, "bf16"), again, strict=True):
        assert first.recipe == second.recipe
        for name, value in first.inputs.items():
            assert same(value, second.inputs[name])


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
    ("kl_penalty", "far", "k3 beyond FP32"): lambda c: log_ratio(c).min() < -89,
    ("kl_penalty", "far", "k3 just inside FP32"): lambda c: -89 < log_ratio(c).min() < -80,
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
    ("gae", "near_overflow", "reward plus next value beyond FP32"): lambda c: (
        (c.inputs["rewards"][:, :-1].double() + c.inputs["gamma"] * c.inputs["values"][:, 1:])[
            c.inputs["mask"][:, 1:]
        ]
        .abs()
        .gt(FORMATS["fp32"].largest)
        .any()
    ),
}


@pytest.mark.parametrize(("function", "region", "what"), SOMETIMES)
def test_a_hundred_cases_include(function: str, region: str, what: str) -> None:
    cases = draw(function, region, "fp32", 100)
    assert any(bool(SOMETIMES[function, region, what](case)) for case in cases)


@pytest.mark.parametrize("function", list(REGIONS))
def test_the_print_of_a_small_case_evaluates_to_the_case(function: str) -> None:
    names = {"Case": Case, "hex_tensor": hex_tensor, "right_padded": right_padded, "torch": torch}
    printed = 0
    for region in REGIONS[function]:
        for case in drawn(function, region, "fp32"):
            if "recipe" in repr(case):
                continue
            again = eval(repr(case), names)
            assert all(same(case.inputs[name], x) for name, x in again.inputs.items())
            printed += 1
    assert printed > 10


def test_a_large_case_prints_its_recipe_and_little_else() -> None:
    text = repr(drawn("token_logprobs", "large_vocabulary", "bf16")[0])
    assert "seed=" in text or "kind=flat" in text
    assert "<bf16 (1, 1, 151936): " in text
    assert len(text) < 600


def test_special_values_print_exactly() -> None:
    x = torch.tensor([[0.1, -0.0, torch.nan, torch.inf, 2.0**-149, 3.0]])
    text = repr(Case({"x": x}))
    assert "'0x1.99999ap-4 -0x0p+0 nan inf 0x1p-149 0x1.8p+1'" in text
    assert same(eval(text, {"Case": Case, "hex_tensor": hex_tensor}).inputs["x"], x)


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
