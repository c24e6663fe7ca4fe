"""What a core has to keep exactly, with no tolerance.

The hazard. A limit can hide a mistake of its own size. Some statements need none: identical
policies have a ratio of 1, a constant has no advantage, what stands in a masked slot does not
matter. Inputs are chosen so that every healthy evaluation is exact.

A property is a function ``(function, case)`` that raises :class:`ConformanceFailure` or returns the
number of elements that it compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from precision_lib.conformance.calls import call
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.strategies.cases import INPUT_FORMATS, Case, right_padded
from precision_lib.formats import Format

Function = Callable[..., Any]
Holds = Callable[[str, Function, Inputs], int]


@dataclass(frozen=True)
class Property:
    """An exact statement about one function.

    ``holds`` raises ConformanceFailure, or returns how many elements it compared. It is tried on
    ``cases``, without them on those of the function's ``region``. ``cost`` is a share of the
    normal number of examples: what is exact needs no search for the largest error.
    """

    meaning: str
    holds: Holds
    region: str = "ordinary"
    cost: float = 0.4
    formats: tuple[str, ...] = INPUT_FORMATS
    cases: Callable[[Format], SearchStrategy[Case]] | None = None


def _equal(name: str, what: str, got: Tensor, want: Tensor, inputs: Inputs) -> int:
    """Equal as FP32 values, NaN to NaN: a float64 core may differ behind the 24th bit."""
    g, w = got.float(), want.float()
    if not ((g == w) | (g.isnan() & w.isnan())).all():
        raise ConformanceFailure(
            f"{name}: {what}\n  got {g.flatten()[:8].tolist()}, want {w.flatten()[:8].tolist()}",
            inputs,
        )
    return g.numel()


def _ratio_is_one(name: str, function: Function, inputs: Inputs) -> int:
    """Identical log-probs and advantages of 1: the loss is -1, in whatever order it is summed.

    A power of two of real tokens, so that a weight of 1/n is exact too.
    """
    mask = inputs["mask"]
    count = 2 ** (int(mask.sum()).bit_length() - 1)
    changed = inputs | {
        "mask": mask & (mask.flatten().cumsum(0).view(mask.shape) <= count),
        "old_logprobs": inputs["logprobs"].clone(),
        "advantages": torch.ones_like(inputs["advantages"]),
    }
    got = call(name, function, changed)["result"]
    return _equal(name, "the ratio of identical policies is not 1", got, -torch.ones(()), changed)


def _zero_for_identical(name: str, function: Function, inputs: Inputs) -> int:
    changed = inputs | {"ref_logprobs": inputs["policy_logprobs"].clone()}
    got = call(name, function, changed)["result"]
    what = "the KL of identical policies is not exactly 0"
    return _equal(name, what, got, torch.zeros(got.shape), changed)


def _not_negative(name: str, function: Function, inputs: Inputs) -> int:
    """k2 and k3 are never below zero; k1 may be and is taken as k3."""
    estimator = "k3" if inputs.word("estimator") == "k1" else inputs.word("estimator")
    return _never_negative(name, function, inputs | {"estimator": estimator})


def _never_positive(name: str, function: Function, inputs: Inputs) -> int:
    return _one_sided(name, -call(name, function, inputs)["result"], "positive", inputs)


def _never_negative(name: str, function: Function, inputs: Inputs) -> int:
    return _one_sided(name, call(name, function, inputs)["result"], "negative", inputs)


def _one_sided(name: str, magnitude: Tensor, sign: str, inputs: Inputs) -> int:
    wrong = magnitude[~(magnitude >= 0)]  # NaN too
    if wrong.numel():
        raise ConformanceFailure(
            f"{name}: {wrong.numel()} of {magnitude.numel()} are {sign}, by {-float(wrong[0]):.3g}",
            inputs,
        )
    return magnitude.numel()


def _constant_gives_zero(name: str, function: Function, inputs: Inputs) -> int:
    got = call(name, function, inputs)["result"]
    return _equal(name, "a constant is not turned into 0", got, torch.zeros(got.shape), inputs)


def _undiscounted(name: str, function: Function, inputs: Inputs) -> int:
    """gamma = lam = 1 on small integers: the advantage is reward-to-go minus value, exactly."""
    names, mask = ("rewards", "values"), inputs["mask"]
    small = {k: torch.nan_to_num(inputs[k], 0, 0, 0).clamp(-9, 9).round() for k in names}
    changed = inputs | {"gamma": 1.0, "lam": 1.0} | small
    rewards, values = (torch.where(mask, changed[k].double(), 0) for k in names)
    to_go = rewards.flip(-1).cumsum(-1).flip(-1) * mask
    got = call(name, function, changed)
    compared = 0
    if "advantages" in got:
        what = "with gamma = lam = 1 the advantage is not reward-to-go minus value"
        compared = _equal(name, what, got["advantages"], to_go - values, changed)
    what = "with gamma = lam = 1 the return is not the reward-to-go"
    return compared + _equal(name, what, got["returns"], to_go, changed)


def _masked_contents(name: str, function: Function, inputs: Inputs) -> int:
    """The same real tokens with 0, NaN and inf in the masked slots: the same result."""
    compared = 0
    variants = [_with_masked(inputs, filler) for filler in (0.0, torch.nan, torch.inf, -torch.inf)]
    first, *others = [call(name, function, v) for v in variants]
    for part in first:
        for variant, other in zip(variants[1:], others, strict=True):
            what = f"what stands in masked slots changes the {part}"
            compared += _equal(name, what, other[part], first[part], variant)
        if first[part].dim():  # a scalar has no masked slots
            outside = first[part][~variants[0]["mask"]]
            what = f"the {part} in masked slots is not 0"
            compared += _equal(name, what, outside, torch.zeros_like(outside), variants[0])
    return compared


def _with_masked(inputs: Inputs, filler: float) -> Inputs:
    """One more masked column, and ``filler`` in all masked slots."""
    mask = torch.nn.functional.pad(inputs["mask"], (0, 1))
    changed = {
        key: torch.nn.functional.pad(value, (0, 1)).masked_fill(~mask, filler)
        for key, value in inputs.floating().items()
    }
    return inputs | changed | {"mask": mask}


def _empty_mask(name: str, function: Function, inputs: Inputs) -> int:
    """No real token at all: 0, or a ValueError, but not NaN."""
    changed = inputs | {"mask": torch.zeros_like(inputs["mask"])}
    compared = 0
    try:
        parts = call(name, function, changed)
    except ConformanceFailure as failure:
        if isinstance(failure.__cause__, ValueError):
            return 1
        raise
    for part, got in parts.items():
        what = f"the {part} of an empty mask is not 0"
        compared += _equal(name, what, got, torch.zeros(got.shape), changed)
    return compared


def _permuted(name: str, function: Function, inputs: Inputs) -> int:
    """The sequences in reverse order give the results in reverse order."""
    straight = call(name, function, inputs)
    reverse = call(name, function, inputs.each(lambda x: x.flip(0)))
    return sum(
        _equal(
            name,
            f"the {part} of a sequence depends on its place in the batch",
            reverse[part].flip(0),
            straight[part],
            inputs,
        )
        for part in straight
        if part != "gradient"
    )


def _padded(name: str, function: Function, inputs: Inputs) -> int:
    """A slot with NaN behind each sequence changes nothing in front of it."""
    longer = inputs | {
        k: torch.cat([v, torch.full_like(v[:, :1], 0 if k == "tokens" else torch.nan)], 1)
        for k, v in inputs.tensors.items()
    }
    short = call(name, function, inputs)["result"]
    got = call(name, function, longer)["result"][:, :-1]
    return _equal(name, "padding changes the result", got, short, inputs)


@st.composite
def _constant_rows(draw: st.DrawFn, fmt: Format, with_mask: bool) -> Case:
    """A constant of any exponent whose sum is finite, over one to eight slots a row."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    significand = draw(st.integers(2 ** (fmt.significand_bits - 1), 2**fmt.significand_bits - 1))
    exponent = draw(st.integers(max(fmt.emin, -60), min(fmt.emax, 60) - 5))
    value = draw(st.sampled_from((-1, 1))) * significand * 2.0 ** (exponent - fmt.significand_bits)
    x = torch.full((rows, width), value, dtype=torch.float64).to(fmt.dtype)
    if not with_mask:
        return Case(Inputs({"rewards": x}))
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    lengths[0] = max(lengths[0], 1)
    return Case(Inputs({"x": x, "mask": right_padded(lengths, width)}))


_MASKED = {
    "masked_contents_do_not_matter": Property(
        "NaN, inf or 0 in masked slots: the same result, and 0 in those slots",
        _masked_contents,
        "ragged",
    ),
    "empty_mask_is_zero_or_refused": Property(
        "no real token at all gives 0 or a ValueError, never NaN", _empty_mask
    ),
}
_ROWWISE = {
    "permutation_of_sequences": Property(
        "a sequence's result does not depend on its place in the batch", _permuted
    )
}
_PER_TOKEN = _ROWWISE | {
    "padding_changes_nothing": Property(
        "a padded slot behind a sequence changes no bit in front of it", _padded
    )
}

PROPERTIES: dict[str, dict[str, Property]] = {
    "token_logprobs": _PER_TOKEN
    | {
        "never_positive": Property(
            "a probability is at most 1, so its logarithm is at most 0",
            _never_positive,
            "confident",
        )
    },
    "entropy": _PER_TOKEN
    | {"never_negative": Property("an entropy is at least 0", _never_negative, "confident")},
    "kl_penalty": _PER_TOKEN
    | {
        "zero_for_identical_policies": Property(
            "the KL of identical log-probs is exactly 0", _zero_for_identical
        ),
        "k2_and_k3_are_not_negative": Property(
            "k2 and k3 are never below 0, as exp(-d) - 1 + d is by rounding",
            _not_negative,
            "near_identical",
        ),
    },
    "masked_mean": _MASKED,
    "whiten": _MASKED
    | {
        "constant_gives_zero": Property(
            "a constant input has no deviation",
            _constant_gives_zero,
            cases=partial(_constant_rows, with_mask=True),
        )
    },
    "gae": _MASKED
    | _ROWWISE
    | {
        "undiscounted_is_reward_to_go": Property(
            "gamma = lam = 1: advantage = reward-to-go - value", _undiscounted, "ragged"
        )
    },
    "group_advantages": _ROWWISE
    | {
        "constant_gives_zero": Property(
            "a group of equal rewards has no advantage",
            _constant_gives_zero,
            cases=partial(_constant_rows, with_mask=False),
        )
    },
    "policy_loss": _MASKED
    | {
        "ratio_is_one_for_identical_policies": Property(
            "before any update the ratio is exactly 1", _ratio_is_one
        )
    },
    "value_loss": _MASKED,
}
