"""What a case of each region must be like: the difficulty that the region names, as a predicate.

The hazard. A region whose cases lost their difficulty turns every check in it green. So each one
has a claim of its own here, in float64, by textbook formulas and not by the code that draws it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from precision_lib.conformance.strategies import Case
from precision_lib.formats import FORMATS, Format, ulp


def numbers(case: Case, name: str) -> Tensor:
    """The real tokens of a tensor as float64, or all of it where there is no mask."""
    x, mask = case.inputs[name], case.inputs.mask
    return (x if mask is None else x[mask]).double()


def tensors(case: Case) -> dict[str, Tensor]:
    """The floating-point tensors of a case."""
    return case.inputs.floating()


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
    return bool(case.inputs.tensors)


def masked_nonfinite(case: Case, _: Format) -> bool:
    mask = case.inputs["mask"]
    return all(bool((~x[~mask].isfinite()).any()) for x in tensors(case).values())


def beyond_a_bf16_count(case: Case, _: Format) -> bool:
    return int(case.inputs["mask"].sum()) > 256


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
    "many_rows": lambda c, _: c.inputs["logits"].shape[-1] == 8,
    "large_offset": offset,
    "minus_inf": lambda c, _: bool(
        (numbers(c, "logits") == -torch.inf).any(-1).all()
        and numbers(c, "logits").isfinite().any(-1).all()
    ),
    "confident": lambda c, fmt: bool(((gap(c, fmt) >= 5) & (gap(c, fmt) <= 130)).all()),
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
        0 < log_ratio(c).abs().max() <= 2 + 80 * fmt.unit_roundoff
    ),
    "ordinary": lambda c, _: bool(0 < log_ratio(c).abs().max() <= 20),
    "far": lambda c, _: bool(log_ratio(c).abs().max() >= 84),
    "identical": lambda c, _: bool((log_ratio(c) == 0).all()),
    "tiny_logprobs": lambda c, _: bool(0 < numbers(c, "policy_logprobs").abs().max() < 5e-4),
    "low_probability": lambda c, _: bool(numbers(c, "policy_logprobs").max() <= -29),
}


def gae_results(case: Case) -> tuple[Tensor, Tensor]:
    """Textbook GAE in float64; the library's oracle is not needed to see that a number fits."""
    mask, discount = case.inputs["mask"], case.inputs.number("gamma") * case.inputs.number("lam")
    rewards, values = (case.inputs[n].double().where(mask, 0) for n in ("rewards", "values"))
    advantages = torch.zeros_like(values)
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=1)
    deltas = rewards + case.inputs.number("gamma") * following - values
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
    "long": lambda c, _: c.inputs["rewards"].shape[1] >= 256 and c.inputs.number("gamma") == 0.999,
    "sparse_terminal": sparse,
    "large_values": lambda c, fmt: large_mean(numbers(c, "values"), fmt),
    "near_overflow": gae_fits,
    "undiscounted": lambda c, _: c.inputs.number("gamma") == c.inputs.number("lam") == 1,
}


def policy_gain(case: Case) -> Tensor:
    return log_ratio(case).exp() * numbers(case, "advantages")


def ratio_overflows_but_not_the_product(case: Case, _: Format) -> bool:
    sums = policy_gain(case).abs().sum()
    return bool(log_ratio(case).max() > 88.73 and sums < FORMATS["fp32"].largest)


def at_the_clip(case: Case, fmt: Format) -> bool:
    d, clip = log_ratio(case), case.inputs.number("clip_range")
    edge = torch.where(d > 0, torch.tensor(clip), torch.tensor(-clip)).double().log1p()
    return bool(((d - edge).abs() <= 4 * ulp(edge, fmt)).all())


POLICY: dict[str, Claim] = RAGGED | {
    "long": beyond_a_bf16_count,
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
    steps = ulp(numbers(case, "values").abs() + case.inputs.number("clip_range"), fmt)
    return bool(((moves(case).abs() - case.inputs.number("clip_range")).abs() <= 4 * steps).all())


VALUE: dict[str, Claim] = RAGGED | {
    "long": beyond_a_bf16_count,
    "identical": lambda c, _: bool((moves(c) == 0).all() and (errors(c) == 0).all()),
    "large_values": lambda c, fmt: large_mean(numbers(c, "values"), fmt),
    "clipped": lambda c, _: bool(
        (moves(c).abs() > c.inputs.number("clip_range")).all()
        and moves(c).min() < 0 < moves(c).max()
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
    "whiten": RAGGED | POPULATIONS | {"long": beyond_a_bf16_count},
    "gae": GAE,
    "group_advantages": POPULATIONS
    | {
        "ordinary": always,
        "binary": each(lambda x, _: ((x == 0) | (x == 1)).all()),
        "one_success": each(lambda x, _: x.numel() >= 16 and (x == x.max()).sum() == 1),
        "one_sample": each(lambda x, _: x.numel() == 1),
        "openrlhf_case": each(lambda x, _: x.abs().max() == 1.0078125 * x.abs().min()),
    },
    "policy_loss": POLICY,
    "value_loss": VALUE,
}
