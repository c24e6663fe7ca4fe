"""The law of absorption from weights alone, on planted weights and beside real additions."""

import pytest
import torch

from precision_lib.forensics.h6.updates import apply_step
from tools.absorption import law, steps_of_format


def law_of(weights: torch.Tensor, rate: float) -> dict[str, float]:
    return law(*steps_of_format([weights], "bf16"), rate)


@pytest.mark.parametrize(
    ("rate", "moved", "kept"),
    [(0.0039, 0.0, 0.0), (0.004, 1.0, 2**-7 / 0.004), (0.012, 1.0, 2 * 2**-7 / 0.012)],
)
def test_a_step_is_lost_up_to_half_an_ulp_and_rounded_beyond(
    rate: float, moved: float, kept: float
) -> None:
    found = law_of(torch.full((8,), 1.5), rate)
    assert found == {"moved_frac": moved, "kept": pytest.approx(kept)}


def test_weights_of_all_parameters_count_alike() -> None:
    parameters = [torch.full((3,), 1.5), torch.full((2, 3), 1e-3)]
    found = law(*steps_of_format(parameters, "bf16"), 1e-4)
    assert found["moved_frac"] == pytest.approx(6 / 9)


@pytest.mark.parametrize("rate", [1e-6, 1e-5, 1e-4])
def test_the_law_is_what_steps_of_random_weights_do(rate: float) -> None:
    weights = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).mul(0.05)
    stored = weights.bfloat16()
    steps = torch.full_like(weights, rate) * torch.where(torch.arange(20_000) % 2 == 0, 1, -1)
    moved = float((apply_step(stored, steps) != stored).double().mean())
    predicted = law_of(weights, rate)["moved_frac"]
    chance = (predicted * (1 - predicted) / 20_000) ** 0.5
    powers = 2**-7  # weights on a power of two have a nearer neighbour on one side
    assert abs(moved - predicted) <= 4 * chance + powers * predicted
    assert moved > 0
