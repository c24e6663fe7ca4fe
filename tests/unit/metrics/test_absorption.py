"""The laws of stored weights on numbers that were made up, and faults that each must see."""

import pytest
import torch
from torch import Tensor

from precision_lib.faults.absorption import step_on_the_copy, step_truncated
from precision_lib.formats import FORMATS, get_format
from precision_lib.metrics.absorption import (
    CopyCounts,
    copy_counts,
    half_distance,
    stored_counts,
    survival,
)

SIGMAS = 4.5


def _stored(weights: Tensor, steps: Tensor) -> Tensor:
    return (weights.float() + steps).to(weights.dtype)


def _weights(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights of many sizes, and steps of 1e-4 to 1e-1 of them."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n, generator=generator) * 0.1
    sizes = 10 ** (-4 + 3 * torch.rand(n, generator=generator))
    signs = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    return weights, weights.abs() * sizes * signs


def test_half_distances_by_hand() -> None:
    """From 1 the next bf16 numbers are 1 + 2^-7 and 1 - 2^-8; from 1.5 both are 2^-7 away."""
    bf16, fp16 = FORMATS["bf16"], FORMATS["fp16"]
    weights = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.5, 1.5, 0.0])
    steps = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    wanted = [2.0**-8, 2.0**-9, 2.0**-9, 2.0**-8, 2.0**-8, 2.0**-8, bf16.smallest_subnormal / 2]
    assert half_distance(weights, steps, bf16).tolist() == wanted
    # Below the smallest normal number the numbers are as far apart as above it.
    smallest = torch.tensor([fp16.smallest_normal])
    assert half_distance(smallest, -smallest, fp16).item() == fp16.smallest_subnormal / 2


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_a_step_just_below_half_an_ulp_is_lost(share: float) -> None:
    weights, steps = torch.tensor([1.0]).bfloat16(), torch.tensor([share * 2.0**-8])
    survives, undecided = survival(weights, steps, FORMATS["bf16"])
    assert survives.item() == (share > 1)
    assert not undecided.item()
    assert (_stored(weights, steps) != weights).item() == (share > 1)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_the_laws_hold_of_every_weight_that_is_rounded_to_nearest(name: str) -> None:
    weights, steps = _weights(200_000)
    stored = weights.to(get_format(name).dtype)
    counts = stored_counts(stored, _stored(stored, steps), steps)
    assert counts.n + counts.undecided == 200_000
    assert counts.undecided < 200_000 / 1000
    assert (counts.exceptions, counts.off_nearest) == (0, 0)
    assert 0 < counts.moved <= counts.n


def test_the_laws_hold_of_every_code_of_a_16_bit_format() -> None:
    """Powers of two, subnormal numbers and 0 included; steps around half of each distance."""
    for name in ("bf16", "fp16"):
        fmt = FORMATS[name]
        codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(fmt.dtype)
        numbers = codes[codes.isfinite() & (codes.float().abs() < fmt.largest / 4)]
        if name == "bf16":  # steps that FP32 represents
            numbers = numbers[numbers.float().abs() > 2.0**-100]
        for share in (0.5, 0.98, 1.02, 1.4):
            for sign in (-1.0, 1.0):
                direction = torch.full(numbers.shape, sign)
                steps = (half_distance(numbers, direction, fmt) * share * sign).float()
                counts = stored_counts(numbers, _stored(numbers, steps), steps)
                assert (counts.n, counts.undecided) == (len(numbers), 0)
                assert (counts.exceptions, counts.off_nearest) == (0, 0)
                assert counts.moved == (len(numbers) if share > 1 else 0)


@pytest.mark.parametrize("fault", [step_truncated, step_on_the_copy])
def test_a_planted_fault_is_seen(fault: object) -> None:
    """Truncation in every format that truncates; a step on the copy in FP32."""
    assert callable(fault)
    weights, steps = _weights(10_000)
    stored = weights.bfloat16() if fault is step_truncated else weights
    counts = stored_counts(stored, fault(stored, steps), steps)
    assert counts.off_nearest > 1000
    if fault is step_truncated:
        assert counts.exceptions > 0


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_copy_of_fp32_masters_moves_with_probability_step_over_ulp(name: str) -> None:
    weights, _ = _weights(400_000, seed=1)
    steps = torch.full_like(weights, 1e-6)
    counts = copy_counts(weights, weights + steps, steps, get_format(name))
    assert counts.n == 400_000
    assert counts.z is not None
    assert abs(counts.z) < SIGMAS
    # A master that is stored on the grid would move in other places: the check can fail.
    stored = weights.to(get_format(name).dtype).float()
    moved = int((_stored(stored.to(get_format(name).dtype), steps) != stored).sum())
    assert abs(moved - counts.expected) > SIGMAS * counts.variance**0.5


def test_masters_on_the_grid_leave_nothing_to_chance() -> None:
    weights = _weights(1000)[0].bfloat16().float()
    steps = torch.full_like(weights, 1e-3)
    counts = copy_counts(weights, weights + steps, steps, FORMATS["bf16"])
    assert counts.z is None
    assert counts.moved == counts.expected


def test_masters_half_way_between_two_numbers_fall_to_either_side() -> None:
    """1 + 2^-8 k with k odd: a step of the right sign moves the copy, however small it is."""
    weights = 1 + (2 * torch.arange(64) + 1) * 2.0**-8
    steps = torch.full_like(weights, 2.0**-20)
    counts = copy_counts(weights, weights + steps, steps, FORMATS["bf16"])
    assert (counts.n, counts.moved, counts.expected) == (64, 32, 32.0)


def test_counts_add_up() -> None:
    assert CopyCounts(1, 2, 3.0, 4.0) + CopyCounts(10, 20, 30.0, 40.0) == CopyCounts(
        11, 22, 33.0, 44.0
    )
