"""What the core promises of everything that takes a mask, of means and of whitening.

Beyond the conformance tests. B sequences, T tokens.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from precision_lib import bounds, oracle
from precision_lib.formats import FORMATS, format_of
from precision_lib.ppo import gae, masked_mean, whiten
from tests.unit.ppo.layouts import (
    FLOATS,
    Results,
    all_same_bits,
    everything,
    ragged,
    random,
    same_bits,
    within,
)

FP32, FP64 = FORMATS["fp32"], FORMATS["fp64"]


def mean_and_gradient(x: Tensor, y: Tensor, mask: Tensor) -> Results:
    leaf = x.detach().clone().requires_grad_()
    value = masked_mean(leaf, mask)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


#: Every function with a mask, called alike; a second tensor where it takes one.
MASKED: dict[str, Callable[[Tensor, Tensor, Tensor], Results]] = {
    "masked_mean": mean_and_gradient,
    "whiten": lambda x, y, mask: (whiten(x, mask),),
    "gae": lambda x, y, mask: gae(x, y, mask, gamma=0.99, lam=0.95),
}
masked = pytest.mark.parametrize("function", MASKED.values(), ids=MASKED)
MaskedFunction = Callable[[Tensor, Tensor, Tensor], Results]


def exact_whiten(x: Tensor, mask: Tensor) -> Tensor:
    return torch.from_numpy(oracle.whiten(x.double().numpy(), mask.numpy()))


def rounded_float64(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(exact whitened x, limit of a float64 evaluation that is rounded to FP32 once)."""
    want = exact_whiten(x, mask)
    bound = bounds.whiten_bound(x, mask, FP64)
    return want, bound + bounds.rounding_bound(want.abs() + bound, FP32)


# The known traps


@FLOATS
@pytest.mark.parametrize("value", [0.1, 3.3, -1e-3, 1e4])
def test_a_constant_has_no_deviation(dtype: torch.dtype, value: float) -> None:
    """0.1 is not representable: any mean that is rounded leaves a residue, whitened to size 1."""
    mask = ragged(7, 3, 0, 1)
    x = torch.full(mask.shape, value, dtype=dtype)
    nothing = torch.zeros(mask.shape, dtype=torch.promote_types(dtype, torch.float32))
    same_bits(got=whiten(x, mask).abs(), want=nothing)  # -0 will do


@masked
def test_the_contents_of_masked_slots_change_no_bit(function: MaskedFunction) -> None:
    """NaN or inf where the mask is False: 0 there, no trace elsewhere, in the gradient too."""
    mask = ragged(6, 2, 0, 4)
    x, y = random(2, *mask.shape)
    want = function(x.masked_fill(~mask, 0), y.masked_fill(~mask, 0), mask)
    for content in (math.nan, math.inf, -math.inf, 3e38):
        got = function(x.masked_fill(~mask, content), y.masked_fill(~mask, content), mask)
        all_same_bits(got=got, want=want)
        for result in got:
            if result.shape == mask.shape:
                assert (result[~mask] == 0).all()


@masked
def test_an_empty_mask_gives_zeros(function: MaskedFunction) -> None:
    x = torch.full((2, 3), math.nan)
    for result in function(x, x, torch.zeros(2, 3, dtype=torch.bool)):
        same_bits(got=result, want=torch.zeros_like(result))


@pytest.mark.parametrize("mean", [1e3, 1e6, -1.6e7])
def test_a_large_mean_costs_no_digit(mean: float) -> None:
    """E[x^2] - E[x]^2 in FP32 cancels; in float64 the differences from one value do not."""
    mask = ragged(300, 200, 1)
    x = (random(3, 300) * 8).round() / 8 + mean
    want, limit = rounded_float64(x, mask)
    within(got=whiten(x, mask), want=want, limit=limit)
    kept = x[mask]
    variance = kept.square().mean() - kept.mean().square()
    trap = (kept - kept.mean()) * variance.rsqrt()
    assert not ((trap - want[mask]).abs() <= limit[mask]).any()


def test_bf16_counts_go_beyond_256() -> None:
    """900 tokens, 300 of them 1 and the rest 0: a third, and not 300/256 nor 256/900."""
    x = torch.zeros(3, 300, dtype=torch.bfloat16)
    x[0] = 1
    got = masked_mean(x, everything(3, 300))
    same_bits(got=got, want=torch.tensor(1 / 3))
    want, limit = rounded_float64(x, everything(3, 300))
    within(got=whiten(x, everything(3, 300)), want=want, limit=limit)


@pytest.mark.parametrize("exponent", [-110, -60, 60, 110])
def test_whitening_does_not_see_a_power_of_two(exponent: int) -> None:
    """The square of 2^110 overflows FP32, that of 2^-110 vanishes; the results have size 1."""
    mask = ragged(40, 25)
    x = random(2, 40)
    scaled = torch.ldexp(x, torch.tensor(exponent))
    same_bits(got=whiten(scaled, mask), want=whiten(x, mask))


# Formats


@FLOATS
def test_results_are_fp32_or_wider(dtype: torch.dtype) -> None:
    x, mask = random(2, 5).to(dtype), ragged(5, 2)
    want = torch.promote_types(dtype, torch.float32)
    assert masked_mean(x, mask).dtype == whiten(x, mask).dtype == want


def test_float64_keeps_float64() -> None:
    mask = ragged(30, 20)
    x = random(2, 30).double() + 2.0**-40
    limit = bounds.whiten_bound(x, mask, FP64)
    within(got=whiten(x, mask), want=exact_whiten(x, mask), limit=limit)
    within(
        got=masked_mean(x, mask),
        want=torch.tensor(oracle.masked_mean(x.numpy(), mask.numpy()), dtype=torch.float64),
        limit=bounds.masked_mean_bound(x, mask, FP64),
    )


# Means and whitening


@FLOATS
def test_the_mean_of_whitened_values_is_0_within_their_bound(dtype: torch.dtype) -> None:
    """The exact result has mean 0, so the mean of the errors is what is left."""
    mask = ragged(60, 33, 5)
    x = random(*mask.shape).to(dtype) + 3
    y = whiten(x, mask)
    _, limit = rounded_float64(x, mask)
    assert (y[~mask] == 0).all()
    total = sum(Fraction(v) for v in y[mask].tolist())
    assert abs(float(total)) <= float(limit.sum())


@FLOATS
def test_the_gradient_of_the_mean_is_one_over_n(dtype: torch.dtype) -> None:
    mask = ragged(7, 4, 0)
    x = random(*mask.shape).to(dtype).masked_fill(~mask, math.nan)
    _, gradient = mean_and_gradient(x, x, mask)
    assert gradient.dtype == dtype
    want = mask / mask.sum(dtype=torch.float64)
    limit = bounds.masked_mean_gradient_bound(x, mask)
    within(got=gradient, want=want, limit=limit + bounds.rounding_bound(want, format_of(dtype)))
    assert (gradient[~mask] == 0).all()


def test_the_float64_gradient_of_the_mean_agrees_with_differences() -> None:
    """It is linear: a difference errs by the error of the values over the step alone."""
    mask = ragged(4, 2)
    x = random(2, 4).double().requires_grad_()
    step = 2.0**-10
    limit = 2 * float(bounds.masked_mean_bound(x.detach().abs() + step, mask, FP64)) / step
    assert torch.autograd.gradcheck(
        lambda a: masked_mean(a, mask), x, eps=step, atol=limit, rtol=0.0
    )


def test_whitened_values_carry_no_gradient() -> None:
    assert not whiten(random(2, 4).requires_grad_(), everything(2, 4)).requires_grad


def test_whitening_does_not_depend_on_where_the_real_tokens_stand() -> None:
    """A left-padded or inner mask is a mask: whiten does not refuse it."""
    mask = ragged(9, 9, 5).flip(-1)
    mask[:, 0] = False
    x = random(*mask.shape).double() + 1e8
    limit = bounds.whiten_bound(x, mask, FP64)
    within(got=whiten(x, mask), want=exact_whiten(x, mask), limit=limit)


# Bit for bit


@masked
def test_more_padding_changes_no_bit(function: MaskedFunction) -> None:
    """The mean and the moments are sums in float64 that FP32 rounds to the same number."""
    mask = ragged(11, 4, 7)
    x, y = random(2, *mask.shape)
    want = function(x, y, mask)
    more_x, more_y = (torch.nn.functional.pad(a, (0, 6), value=math.nan) for a in (x, y))
    got = function(more_x, more_y, torch.nn.functional.pad(mask, (0, 6)))
    for one, other in zip(got, want, strict=True):
        same_bits(got=one[:, :11] if one.dim() else one, want=other)
        if one.dim():
            assert (one[:, 11:] == 0).all()


@masked
def test_the_order_of_sequences_changes_no_bit(function: MaskedFunction) -> None:
    mask = ragged(11, 4, 7, 0)
    x, y = random(2, *mask.shape)
    order = torch.tensor([2, 3, 0, 1])
    got = function(x[order], y[order], mask[order])
    want = [r[order] if r.dim() else r for r in function(x, y, mask)]
    all_same_bits(got=got, want=want)


# Empty input


@masked
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)], ids=str)
def test_nothing_gives_nothing(function: MaskedFunction, shape: tuple[int, int]) -> None:
    x = torch.zeros(shape)
    for result in function(x, x, x.bool()):
        assert result.shape == shape or result.item() == 0
