"""Scaled FP8 and INT8 products against values that were worked out by hand, and planted faults."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from precision_lib import quantized as q
from precision_lib.formats import FORMATS, round_to

E4M3 = FORMATS["fp8_e4m3"]
FORMATS_OF_ENGINES = ("fp8", "int8")


def _values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scales_of_weights_are_per_block_and_per_channel() -> None:
    weight = torch.zeros(130, 200)
    weight[5, 7], weight[129, 3], weight[0, 199] = -448.0, 224.0, 7.0
    wanted = torch.tensor([[1.0, 7.0 / 448], [0.5, 1.0]])
    assert torch.equal(q.scales(weight, q.WEIGHTS["fp8"]), wanted)
    weight[1, 2], weight[2, 2] = 127.0, -254.0
    assert q.scales(weight, q.WEIGHTS["int8"])[[1, 2, 3], 0].tolist() == [1.0, 2.0, 1.0]


def test_scales_of_activations_are_per_token_and_per_128_channels() -> None:
    x = torch.zeros(2, 256)
    x[0, 3], x[0, 200], x[1, 0] = 448.0, 896.0, 127.0
    of_groups = torch.tensor([[1.0, 2.0], [127.0 / 448, 1.0]])
    assert torch.equal(q.scales(x, q.ACTIVATIONS["fp8"]), of_groups)
    assert torch.equal(q.scales(x, q.ACTIVATIONS["int8"]), torch.tensor([[896.0 / 127], [1.0]]))


@pytest.mark.parametrize(
    ("fmt", "before", "after"),
    [
        # Scale 1. E4M3 has steps of 32 below 448 and of 2**-9 near 0; ties go to the even code.
        ("fp8", [448, 431, 432, 17, 19, 2.0**-10, 3 * 2.0**-10], [448, 416, 448, 16, 20, 0, 2**-8]),
        ("int8", [127, 0.5, 1.5, 2.5, -0.5, -126.6, 0.4], [127, 0, 2, 2, 0, -127, 0]),
        # Scale 2: the same codes, twice as far apart.
        ("fp8", [896, 862, 34, -38], [896, 832, 32, -40]),
        ("int8", [254, 1, 3, -5], [254, 0, 4, -4]),
    ],
)
def test_codes_are_rounded_to_nearest_even(
    fmt: str, before: list[float], after: list[float]
) -> None:
    got = q.quantized(torch.tensor([before]), q.ACTIVATIONS[fmt])
    assert got.tolist() == [after]


@pytest.mark.parametrize("how", [*q.WEIGHTS.values(), *q.ACTIVATIONS.values()])
def test_codes_are_those_of_the_format(how: q.Scaled) -> None:
    """Against the rounding of ``formats.py``, which shares nothing with the native cast."""
    x = _values(130, 300)
    scale = q.spread(q.scales(x, how), x.shape, how)
    quotient = (x / scale).clamp(-how.largest, how.largest)
    wanted = round_to(quotient, E4M3) if how.largest == 448 else quotient.double().round()
    assert torch.equal(q.codes(x, scale, how).double(), wanted)


def _is_right(quantize: Callable[[Tensor, q.Scaled], Tensor]) -> bool:
    """What a quantiser has to keep: zeros, the largest value, and half a step of all others."""
    for how in (*q.WEIGHTS.values(), *q.ACTIVATIONS.values()):
        x = _values(128, 256, seed=1)
        x[:, :128] *= 3.0
        x[7] = 0.0
        if how.rows == 128:
            x[:, 128:] = 0.0
        got, scale = quantize(x, how), q.spread(q.scales(x, how), x.shape, how)
        fmt_step = x.abs() * 2.0**-4 if how.largest == 448 else scale * 0.5
        limit = torch.maximum(fmt_step, scale * 2.0**-10) * (1 + 2.0**-20)
        if not (torch.isfinite(got).all() and ((got - x).abs() <= limit).all()):
            return False
    return True


def _zero_over_zero(x: Tensor, how: q.Scaled) -> Tensor:
    scale = q.spread(q.scales(x, how), x.shape, how)
    scale = torch.where(scale == 1, torch.zeros_like(scale), scale)
    return q.codes(x, scale, how) * scale


def _scale_twice(x: Tensor, how: q.Scaled) -> Tensor:
    scale = q.spread(q.scales(x, how), x.shape, how)
    return q.quantized(x, how) * scale


def _saturated_early(x: Tensor, how: q.Scaled) -> Tensor:
    """240, the largest value of another E4M3; 63 of INT8."""
    scale = q.spread(q.scales(x, how), x.shape, how)
    most = 240.0 if how.largest == 448 else 63.0
    return q.codes(x, scale, how).clamp(-most, most) * scale


@pytest.mark.parametrize("fault", [_zero_over_zero, _scale_twice, _saturated_early])
def test_a_wrong_quantiser_is_seen(fault: Callable[[Tensor, q.Scaled], Tensor]) -> None:
    assert _is_right(q.quantized)
    assert not _is_right(fault)


@pytest.mark.parametrize("fmt", FORMATS_OF_ENGINES)
def test_tiny_and_infinite_numbers(fmt: str) -> None:
    """A scale never becomes 0, and an infinity is not hidden."""
    tiny = torch.full((1, 128), 2.0**-149)
    assert q.scales(tiny, q.ACTIVATIONS[fmt]).item() == torch.finfo(torch.float32).tiny
    assert torch.isfinite(q.quantized(tiny, q.ACTIVATIONS[fmt])).all()
    broken = torch.ones(1, 128)
    broken[0, 3] = torch.inf
    assert torch.isnan(q.quantized(broken, q.ACTIVATIONS[fmt])[0, 3])


@pytest.mark.parametrize("fmt", FORMATS_OF_ENGINES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_the_product_of_its_codes_rounded_to_bf16_once(fmt: str, bias: bool) -> None:
    """Against float64, within the FP32 summation error of I terms and one bf16 rounding."""
    linear = torch.nn.utils.skip_init(torch.nn.Linear, 300, 130, bias=bias)
    linear.weight.data = _values(130, 300)
    if bias:
        linear.bias.data = _values(130, seed=3)
    x = _values(2, 5, 300, seed=2).bfloat16()
    got = q.ScaledLinear(linear, fmt)(x)
    assert (got.shape, got.dtype) == ((2, 5, 130), torch.bfloat16)
    rows = q.quantized(x.view(10, 300), q.ACTIVATIONS[fmt]).double()
    weight = q.quantized(linear.weight.data, q.WEIGHTS[fmt]).double()
    wanted = rows @ weight.T + (linear.bias.data.double() if bias else 0)
    size = rows.abs() @ weight.abs().T + (linear.bias.data.double().abs() if bias else 0)
    error = (got.view(10, 130).double() - wanted).abs()
    limit = wanted.abs() * 2.0**-8 + size * 301 * 2.0**-24
    assert error.numel() > 0
    assert (error <= limit).all()
