"""Formats against native casts: every code of the 16-bit and 8-bit formats, every tie."""

import math

import pytest
import torch

from precision_lib.formats import FORMATS, Format, format_of, get_format, round_to, ulp

SIXTEEN_BIT = ("bf16", "fp16")
EIGHT_BIT = ("fp8_e4m3", "fp8_e5m2")
SMALL = SIXTEEN_BIT + EIGHT_BIT


def every_code(fmt: Format) -> torch.Tensor:
    """Every value of a 16- or 8-bit format, decoded by torch, as float32 (exact)."""
    bits = 8 * torch.empty(0, dtype=fmt.dtype).element_size()
    container = torch.int16 if bits == 16 else torch.uint8
    codes = torch.arange(2**bits, dtype=torch.int32).to(container)
    assert len(codes) == 2**bits
    values: torch.Tensor = codes.view(fmt.dtype).to(torch.float32)
    return values


def finite_ascending(fmt: Format) -> torch.Tensor:
    """Every finite value of the format, ascending, each once (one zero), float64."""
    values = every_code(fmt)
    ascending: torch.Tensor = torch.unique(values[torch.isfinite(values)].double(), sorted=True)
    return ascending


def same(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Equal values with equal signs, NaN equal to NaN."""
    return (torch.isnan(got) & torch.isnan(want)) | (
        (got == want) & (torch.signbit(got) == torch.signbit(want))
    )


@pytest.mark.parametrize("name", SMALL)
def test_every_code_rounds_to_itself(name: str) -> None:
    values = every_code(FORMATS[name]).double()
    assert same(round_to(values, FORMATS[name]), values).all()


@pytest.mark.parametrize("name", SMALL)
def test_ulp_is_the_distance_to_the_next_value_away_from_zero(name: str) -> None:
    values = finite_ascending(FORMATS[name])
    positive = values[values >= 0]
    assert torch.equal(ulp(positive, FORMATS[name])[:-1], positive.diff())
    assert torch.equal(ulp(-positive, FORMATS[name]), ulp(positive, FORMATS[name]))


@pytest.mark.parametrize("name", SMALL)
def test_ties_and_their_neighbours_round_as_the_native_cast(name: str) -> None:
    """Between every two neighbours: the midpoint, one float32 below it and one above it."""
    fmt = FORMATS[name]
    values = finite_ascending(fmt)
    middle = ((values[1:] + values[:-1]) / 2).float()  # one bit more than the format: exact
    assert torch.equal(middle.double(), (values[1:] + values[:-1]) / 2)
    up, down = (torch.tensor(s * math.inf) for s in (1, -1))
    for x in (middle, torch.nextafter(middle, up), torch.nextafter(middle, down)):
        native = x.to(fmt.dtype).double()
        assert same(round_to(x, fmt), native).all()
    assert len(middle) > 200


@pytest.mark.parametrize("name", [*SIXTEEN_BIT, "fp8_e5m2"])
def test_overflow_starts_half_a_step_above_the_largest_value(name: str) -> None:
    fmt = FORMATS[name]
    assert fmt.largest == float(finite_ascending(fmt).max()) == torch.finfo(fmt.dtype).max
    tie = torch.tensor(fmt.largest + float(ulp(torch.tensor(fmt.largest), fmt)) / 2)
    below = torch.nextafter(tie, torch.tensor(0.0))
    beyond = torch.stack([below, tie, -tie, torch.tensor(math.inf), torch.tensor(-math.inf)])
    want = [fmt.largest, math.inf, -math.inf, math.inf, -math.inf]
    assert round_to(beyond, fmt).tolist() == want
    assert beyond.to(fmt.dtype).double().tolist() == want


def test_e4m3_has_no_infinity() -> None:
    fmt = FORMATS["fp8_e4m3"]
    got = round_to(torch.tensor([463.0, 464.0, 465.0, 1e9, math.inf]), fmt)
    assert got[:2].tolist() == [448.0, 448.0]  # 464 ties to the even neighbour
    assert torch.isnan(got[2:]).all()


@pytest.mark.parametrize("name", list(FORMATS))
def test_facts_agree_with_torch(name: str) -> None:
    fmt = FORMATS[name]
    info = torch.finfo(fmt.dtype)
    assert fmt.machine_epsilon == 2 * fmt.unit_roundoff == info.eps
    assert fmt.smallest_normal == info.smallest_normal
    assert fmt.largest == info.max
    assert fmt.smallest_subnormal == float(ulp(torch.zeros(1), fmt))


def test_float64_rounds_once_where_the_native_cast_rounds_twice() -> None:
    """1 + 2**-8 + 2**-40 lies above the tie, so bf16 must go up; via float32 it goes to even."""
    x = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert round_to(x, FORMATS["bf16"]).tolist() == [1 + 2.0**-7]
    assert x.to(torch.bfloat16).tolist() == [1.0]


def test_random_float32_values_round_to_16_bits_as_the_native_cast() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=generator)
    x = codes.to(torch.int32).view(torch.float32)
    for name in SIXTEEN_BIT:
        native = x.to(FORMATS[name].dtype).double()
        assert same(round_to(x, FORMATS[name]), native).all()


def test_non_finite_values_have_no_ulp() -> None:
    steps = ulp(torch.tensor([math.inf, -math.inf, math.nan]), FORMATS["fp32"])
    assert torch.isnan(steps).all()


def test_fp64_rounding_is_the_identity() -> None:
    x = torch.tensor([math.pi, -0.0, math.inf, 5e-324], dtype=torch.float64)
    assert same(round_to(x, FORMATS["fp64"]), x).all()


def test_unknown_formats_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown number format 'bf8'; use one of fp64, fp32"):
        get_format("bf8")
    with pytest.raises(ValueError, match=r"torch.int32 is not a supported floating-point format"):
        format_of(torch.int32)
    with pytest.raises(TypeError, match=r"expected a floating-point tensor, got torch.int64"):
        round_to(torch.tensor([1]), FORMATS["bf16"])


@pytest.mark.parametrize("name", list(FORMATS))
def test_lookup_by_name_and_dtype_agree(name: str) -> None:
    assert format_of(get_format(name).dtype).name == name
