"""What a failure says beside the numbers: the change that makes it pass, the token, the place."""

from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib import ppo
from precision_lib.conformance import runner
from precision_lib.conformance.checks import find_check
from precision_lib.conformance.compare import compare
from precision_lib.conformance.diagnosis import diagnosis, place_of
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import NO_INPUTS, Inputs
from precision_lib.conformance.truth import Truth

RAGGED = Inputs(
    {
        "x": torch.tensor([[1.0, 2.0, torch.nan]]),
        "mask": torch.tensor([[True, True, False]]),
    }
)


def by_product_with_mask(x: Tensor, mask: Tensor) -> Tensor:
    return (x.float() * mask).sum() / mask.sum().clamp(min=1)


def in_bf16(x: Tensor, mask: Tensor) -> Tensor:
    if x.dtype == torch.float32:
        return ppo.masked_mean(x, mask)
    return torch.where(mask, x, 0).sum() / mask.sum()


#: The arguments of a value loss of two tokens.
TWO_TOKENS = Inputs(
    {
        "values": torch.tensor([[1.0, 3.0]]),
        "old_values": torch.tensor([[1.0, 3.0]]),
        "returns": torch.tensor([[0.0, 1.0]]),
        "mask": torch.ones(1, 2, dtype=torch.bool),
    },
    {"clip_range": 0.2},
)


def test_padding_is_named_where_a_zero_there_makes_it_pass() -> None:
    first, *others = diagnosis("masked_mean", by_product_with_mask, RAGGED)
    assert first == "right with 0 in the padded slots: fails only with nan there"
    assert others == ["token [0, 0] alone is wrong: got nan, want 1 (x 1)"]


def test_a_format_is_named_where_another_one_makes_it_pass() -> None:
    x = torch.tensor([[1.0, 2.0, 0.0078125]], dtype=torch.bfloat16)
    inputs = Inputs({"x": x, "mask": torch.ones(1, 3, dtype=torch.bool)})
    assert "right with the same values in float32" in diagnosis("masked_mean", in_bf16, inputs)[0]


def test_a_scalar_loss_names_the_token_that_is_wrong_alone() -> None:
    def wrong(values: Tensor, **others: Any) -> Tensor:
        return ppo.value_loss(values=values.clamp(max=2), **others)

    (said,) = diagnosis("value_loss", wrong, TWO_TOKENS)
    assert said.startswith("token [0, 1] alone is wrong: got 1.62, want 2 (values 3, old_values 3")


def test_a_dependence_on_earlier_calls_is_named() -> None:
    counts: dict[Any, int] = {}

    def remembering(x: Tensor, mask: Tensor) -> Tensor:
        count = counts.setdefault(x.shape, int(mask.sum()) + 1 - len(counts))
        return torch.where(mask, x, 0).sum() / count

    inputs = Inputs({"x": torch.ones(1, 2), "mask": torch.ones(1, 2, dtype=torch.bool)})
    said = diagnosis("masked_mean", remembering, inputs)
    assert "depends on earlier calls, or on the size of the batch" in said[0]


def test_a_right_input_and_a_large_one_have_no_diagnosis() -> None:
    assert diagnosis("masked_mean", ppo.masked_mean, RAGGED) == []
    mask = torch.ones(300, 300, dtype=torch.bool)
    large = Inputs({"x": torch.full((300, 300), torch.nan), "mask": mask})
    assert diagnosis("masked_mean", by_product_with_mask, large) == []


def test_the_place_of_a_function_is_its_file_and_line() -> None:
    line = by_product_with_mask.__code__.co_firstlineno
    assert place_of(by_product_with_mask) == f"test_diagnosis.py:{line}"
    assert place_of(max) == ""


def test_a_failure_shows_place_and_cause_and_failures_of_one_cause_have_one_signature() -> None:
    signatures = set()
    for fmt in ("bf16", "fp32"):
        check = find_check(
            f"test_values_are_within_their_bound[masked_mean-masked_nonfinite-{fmt}]"
        )
        with pytest.raises(ConformanceFailure) as failure:
            runner.run(check, by_product_with_mask)
        assert "masked_mean is defined at test_diagnosis.py:" in str(failure.value)
        assert "right with 0 in the padded slots" in str(failure.value)
        signatures.add(failure.value.signature())
    (signature,) = signatures
    assert signature.startswith("masked_mean: # of # values of the")


@pytest.mark.parametrize(
    ("want", "limit", "said"),
    [
        (0.0, 3e-45, "error 0.5; want exactly 0, from bounds.b"),
        (0.25, float("inf"), "FP32 promises no more than a finite value here"),
        (0.25, 0.125, "error 0.25 = 2 times the limit; limit 0.125 from bounds.b"),
    ],
)
def test_the_size_of_an_error_is_said_against_what_is_asked(
    want: float, limit: float, said: str
) -> None:
    got = torch.tensor([0.5 if limit < 1 else float("nan")])
    wide = {"dtype": torch.float64}
    truth = Truth("result", torch.tensor([want], **wide), torch.tensor([limit], **wide), "bounds.b")  # type: ignore[arg-type]
    with pytest.raises(ConformanceFailure) as failure:
        compare("whiten", got, truth, NO_INPUTS)
    assert said in str(failure.value)
