"""The comparison and the calls of the conformance suite: what they reject, pass and say."""

import math
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.conformance.calls import call
from precision_lib.conformance.compare import compare
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import NO_INPUTS, Inputs
from precision_lib.conformance.truth import Truth, truths
from precision_lib.formats import FORMATS

LARGEST = FORMATS["fp32"].largest


def truth(want: list[float], limit: list[float], part: str = "result") -> Truth:
    wide = {"dtype": torch.float64}
    return Truth(part, torch.tensor(want, **wide), torch.tensor(limit, **wide), "bounds.some_bound")  # type: ignore[arg-type]


def compared(got: list[float], want: list[float], limit: list[float]) -> tuple[int, float]:
    return compare(
        "whiten", torch.tensor(got), truth(want, limit), Inputs({"x": torch.tensor(got)})
    )


def test_within_and_at_the_limit_passes() -> None:
    assert compared([1.25, 2.0], [1.0, 2.0], [0.25, 0.0]) == (2, 1.0)


def test_just_beyond_the_limit_is_rejected_with_index_values_and_bound() -> None:
    beyond = float(torch.nextafter(torch.tensor(1.25), torch.tensor(2.0)))
    with pytest.raises(ConformanceFailure) as failure:
        compared([2.0, beyond], [2.0, 1.0], [0.0, 0.25])
    message = str(failure.value)
    assert "whiten: 1 of 2 values of the result are wrong" in message
    assert f"worst at [1]: got {beyond.hex()}" in message
    assert "want 0x1.0000000000000p+0 (1)" in message
    assert "limit 0.25 from bounds.some_bound" in message
    assert "the result is torch.float32" in message
    assert "hex_tensor('fp32', (2,), " in message


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (math.nan, 1.0),
        (math.inf, 1.0),
        (math.inf, -math.inf),
        (-1e30, -math.inf),
        (math.inf, -1e300),
        (math.nan, math.inf),
        (math.inf, LARGEST / 2),
    ],
)
def test_class_errors_are_rejected_whatever_the_limit(got: float, want: float) -> None:
    with pytest.raises(ConformanceFailure):
        compared([got], [want], [1e-3])


@pytest.mark.parametrize(
    ("got", "want"),
    [(math.inf, math.inf), (-math.inf, -math.inf), (math.inf, 1e300), (-math.inf, -2 * LARGEST)],
)
def test_an_infinity_passes_where_the_exact_value_is_beyond_fp32(got: float, want: float) -> None:
    assert compared([got], [want], [0.0]) == (1, 0.0)


def test_a_limit_of_inf_asks_for_a_finite_value_and_counts_nothing() -> None:
    assert compared([7.0], [1.0], [math.inf]) == (0, 0.0)
    for got in (math.nan, math.inf):
        with pytest.raises(ConformanceFailure):
            compared([got], [1.0], [math.inf])


def test_a_gradient_may_overflow_where_its_own_format_does() -> None:
    got = torch.tensor([math.inf], dtype=torch.float16)
    at = truth([70000.0], [1.0], "gradient")
    assert compare("policy_loss", got, at, NO_INPUTS) == (1, 0.0)
    with pytest.raises(ConformanceFailure):
        compare("policy_loss", got.float(), at, NO_INPUTS)


@pytest.mark.parametrize("shape", [(), (3,), (3, 1), (1, 2)])
def test_another_shape_is_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConformanceFailure, match=r"whiten: result has shape .*, expected \(1, 3\)"):
        call("whiten", returning(torch.zeros(shape)), ORDINARY)


ORDINARY = Inputs(
    {"x": torch.tensor([[1.0, 2.0, 4.0]]), "mask": torch.tensor([[True, True, False]])}
)


LOSS = Inputs({"values": torch.zeros(1, 1)})


def returning(value: Any) -> Any:
    return lambda **inputs: value


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda **inputs: 1 / 0, "masked_mean raised ZeroDivisionError: division by zero"),
        (lambda **inputs: sys.exit(3), "masked_mean raised SystemExit: 3"),
        (lambda **inputs: pytest.skip("no"), "masked_mean raised Skipped: no"),
        (returning(torch.zeros((), device="meta")), "masked_mean returned a .* tensor on meta"),
        (returning(torch.zeros(2).to_sparse()), "masked_mean returned a torch.sparse_coo tensor"),
        (returning(None), "masked_mean returned NoneType, expected a tensor"),
        (returning(torch.tensor(1)), "masked_mean returned torch.int64, expected floating-point"),
        (lambda values: values, "masked_mean raised TypeError: .*unexpected keyword argument 'x'"),
    ],
)
def test_what_a_core_does_wrong_is_said_with_its_name(function: Any, message: str) -> None:
    with pytest.raises(ConformanceFailure, match=message):
        call("masked_mean", function, ORDINARY)


def test_numpy_arrays_and_python_numbers_are_results() -> None:
    assert float(call("masked_mean", returning(1.5), ORDINARY)["result"]) == 1.5
    array = torch.ones(1, 3).numpy()
    assert call("whiten", returning(array), ORDINARY)["result"].shape == (1, 3)


def test_gae_has_to_return_two_tensors() -> None:
    with pytest.raises(ConformanceFailure, match=r"expected \(advantages, returns\)"):
        call("gae", returning(torch.zeros(1)), Inputs({"rewards": torch.zeros(1, 1)}))


def test_a_core_that_changes_its_input_is_named_and_does_not_change_the_case() -> None:
    def in_place(x: Tensor, mask: Tensor) -> Tensor:
        return x.detach().mul_(0).sum() + mask.sum()

    with pytest.raises(ConformanceFailure, match="masked_mean changed its input 'x' in place"):
        call("masked_mean", in_place, ORDINARY)
    assert ORDINARY["x"].tolist() == [[1.0, 2.0, 4.0]]


def test_warnings_of_a_core_are_not_errors_of_the_suite() -> None:
    def warning(x: Tensor, mask: Tensor) -> Tensor:
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        return x[mask].mean()

    assert float(call("masked_mean", warning, ORDINARY)["result"].detach()) == 1.5


def test_a_loss_needs_a_gradient() -> None:
    with pytest.raises(ConformanceFailure, match="value_loss returned a loss without a gradient"):
        call("value_loss", returning(torch.zeros(())), LOSS)


def test_the_truth_of_a_gradient_includes_its_storage_format() -> None:
    """Half a bf16 ulp of 1/3 more than in FP32."""
    inputs = Inputs({"x": torch.ones(1, 3), "mask": torch.ones(1, 3, dtype=torch.bool)})
    fp32 = truths("masked_mean", inputs)["gradient"].limit
    bf16 = truths("masked_mean", inputs | {"x": inputs["x"].bfloat16()})["gradient"].limit
    assert torch.equal((bf16 - fp32) >= 2.0**-11, torch.ones(1, 3, dtype=torch.bool))
