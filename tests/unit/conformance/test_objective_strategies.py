"""Cases of today's objectives keep the interface and have what their region names."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from torch import Tensor

from precision_lib.conformance.strategies.cases import Case
from precision_lib.conformance.strategies.objectives import OBJECTIVE_REGIONS
from precision_lib.formats import FORMATS, round_to
from precision_lib.targets.objectives import OBJECTIVES

ONCE = [(function, name) for function, regions in OBJECTIVE_REGIONS.items() for name in regions]


def drawn(function: str, region: str, fmt: str, examples: int) -> list[Case]:
    cases: list[Case] = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
    )
    @given(OBJECTIVE_REGIONS[function][region].cases(FORMATS[fmt]))
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    return cases


@pytest.mark.parametrize(("function", "region"), ONCE)
def test_a_case_has_the_arguments_the_format_and_a_real_token(function: str, region: str) -> None:
    for case in drawn(function, region, "bf16", 5):
        assert set(case.inputs.keywords()) == set(OBJECTIVES[function])
        assert case.recipe
        for name, x in case.inputs.tensors.items():
            if x.is_floating_point():
                assert x.dtype == torch.bfloat16
                numbers = x.double().nan_to_num(0, 0, 0)
                assert torch.equal(round_to(numbers, FORMATS["bf16"]), numbers)
            elif name == "mask":
                assert x.dtype == torch.bool
                assert x.any()


def _log_ratio(case: Case) -> Tensor:
    names = [name for name in case.inputs.tensors if name.endswith("logprobs")]
    new, old = (torch.where(case.inputs["mask"], case.inputs[name], 0).double() for name in names)
    difference: Tensor = new - old
    return difference


def _holes(case: Case) -> bool:
    mask = case.inputs["mask"]
    return bool((mask[:, 1:] & ~mask[:, :-1]).any())


def _logits(case: Case) -> Tensor:
    logits: Tensor = case.inputs["hidden"].double() @ case.inputs["weight"].double().T
    return logits


#: (function, region, what some case of it has).
SOMETIMES: list[tuple[str, str, str, Callable[[Case], bool]]] = [
    ("aggregate", "ordinary", "a hole", _holes),
    (
        "aggregate",
        "own_denominator",
        "an empty row",
        lambda c: bool((~c.inputs["mask"].any(1)).any()),
    ),
    ("aggregate", "masked_nonfinite", "NaN", lambda c: bool(c.inputs["values"].isnan().any())),
    ("importance_weights", "far", "inf", lambda c: bool(_log_ratio(c).exp().float().isinf().any())),
    (
        "sequence_ratio",
        "cancelling",
        "a product of ratios that overflows on the way",
        lambda c: bool(_log_ratio(c).float().exp().cumprod(1).isinf().any()),
    ),
    ("gspo_loss", "far_positive", "a far mean", lambda c: bool((_log_ratio(c).mean(1) > 88).any())),
    ("dapo_loss", "far_harmful", "a far token", lambda c: bool((_log_ratio(c) > 88).any())),
    ("jsd", "minus_inf", "-inf", lambda c: bool(c.inputs["student_logits"].isinf().any())),
]
ALWAYS: list[tuple[str, str, str, Callable[[Case], bool]]] = [
    ("aggregate", "as_trained", "17 rows", lambda c: c.inputs["mask"].shape == (17, 257)),
    (
        "dapo_loss",
        "far_positive",
        "A >= 0",
        lambda c: not (c.inputs["advantages"][c.inputs["mask"]] < 0).any(),
    ),
    ("linear_token_logprobs", "far_below_zero", "below", lambda c: bool((_logits(c) < -16).all())),
    ("rloo_advantages", "as_trained", "K >= 16", lambda c: c.inputs["rewards"].shape[1] >= 16),
]


@pytest.mark.parametrize(("function", "region", "what", "has"), SOMETIMES)
def test_some_case_has_what_is_hard(
    function: str, region: str, what: str, has: Callable[[Case], bool]
) -> None:
    assert any(map(has, drawn(function, region, "fp32", 25))), what


@pytest.mark.parametrize(("function", "region", "what", "has"), ALWAYS)
def test_every_case_has_what_the_region_says(
    function: str, region: str, what: str, has: Callable[[Case], bool]
) -> None:
    assert all(map(has, drawn(function, region, "fp32", 5))), what
