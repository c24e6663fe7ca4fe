"""The law of the bf16 error, on models of a known law and on random models of two layers."""

import math

import pytest

from tools.scaling import (
    FITTED,
    ROUNDOFF,
    TESTED,
    Shape,
    Size,
    fitted,
    measured,
    predicted,
    random_model,
    random_responses,
)

SMALL = Size(sequences=8, prompt_tokens=4, response_tokens=16)


def of_depth(depth: int, use: str = FITTED, times: float = 1.0) -> dict[str, object]:
    """A model whose squared hidden error is 0.5 + 0.25 per layer, in squared roundoffs."""
    error = times * ROUNDOFF * math.sqrt(0.5 + 0.25 * depth)
    return {"use": use, "depth": depth, "hidden_error": error, "lever": 2.0, "rounding": 0.003}


def test_the_fit_finds_a_known_law_and_ignores_what_only_tests_it() -> None:
    law = fitted([of_depth(2), of_depth(8), of_depth(32), of_depth(4, TESTED, times=10)])
    assert law == pytest.approx({"a": 0.5, "b": 0.25}, rel=1e-9)
    prediction = predicted(of_depth(80, TESTED), law)
    assert prediction["hidden_error"] == pytest.approx(ROUNDOFF * math.sqrt(20.5), rel=1e-9)
    assert prediction["sigma"] == pytest.approx(
        math.hypot(2.0 * prediction["hidden_error"], 0.003), rel=1e-9
    )


def test_two_depths_test_no_line() -> None:
    with pytest.raises(ValueError, match="of 2 depths: a line needs at least 3"):
        fitted([of_depth(2), of_depth(8), of_depth(8)])


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "GPT2"])
def test_the_law_without_a_fitted_number_holds_on_random_models(architecture: str) -> None:
    """Lever and measured hidden error give sigma; a model in other formats does not fit them.

    The bootstrap's interval of sigma, twice as wide, because the law neglects correlations.
    """
    model = random_model(Shape(architecture, 2, 64, 512), seed=1)
    figures = measured(model, random_responses(model, SMALL), seed=1)
    figures["depth"] = 2
    sigma = predicted(figures, {"a": 1.0, "b": 0.1})["sigma_of_measured_hidden_error"]
    value, low, high = (figures["sigma"][key] for key in ("value", "low", "high"))
    assert value + 2 * (low - value) < sigma < value + 2 * (high - value)
    without_head = figures | {"lever": 0.0}
    assert predicted(without_head, {"a": 1.0, "b": 0.1})["sigma"] < value + 2 * (low - value)
