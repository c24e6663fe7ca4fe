"""The checks of the device: sound arithmetic passes, every planted fault is seen at every k."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from precision_lib.bounds import gamma, product_bound
from precision_lib.forensics import device as checks
from precision_lib.forensics.device_inputs import (
    INNER,
    OPERANDS,
    Operands,
    every_exponent,
    subnormal_pairs,
)
from precision_lib.formats import FORMATS, Format, round_to, ulp
from tests.unit.forensics import emulated_products as emulated

SHAPE = (16, 256)
LOW = ("bf16", "fp16")
FP32 = FORMATS["fp32"]


def outcomes(product: checks.Product, fmt: str, inner: int) -> dict[str, checks.Outcome]:
    """Kind of input to what the check says of ``product``."""
    return {
        kind: checks.check_product(product, make(FORMATS[fmt], inner, SHAPE, inner))
        for kind, make in OPERANDS.items()
    }


def share(outcome: checks.Outcome) -> float:
    """Share of wrong elements."""
    return outcome.wrong / outcome.compared


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("fmt", LOW)
@pytest.mark.parametrize("name", list(emulated.SOUND))
def test_sound_16_bit_products_pass(name: str, fmt: str, inner: int) -> None:
    """Parts of k in any number, and tensor cores that cut bits off."""
    for outcome in outcomes(emulated.SOUND[name], fmt, inner).values():
        assert outcome.passed, outcome.message


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", ["whole", "four_parts"])
def test_sound_fp32_products_pass(name: str, inner: int) -> None:
    for outcome in outcomes(emulated.SOUND[name], "fp32", inner).values():
        assert outcome.passed, outcome.message


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", ["tf32", "tf32_cut"])
def test_tf32_is_seen_at_every_k(name: str, inner: int) -> None:
    """Nearly every element is wrong, at every k alike.

    single_term: an odd 24-bit operand moves by at most 2^-11 (rounded) or 2^-10 (cut) of itself;
    two of them by twice that, in half ulps of at least 2^-25 of the result: at most 2^15 or 2^16.
    Of 4,096 draws some come within a half of it.
    exact_sums: the sum of k moves of at least +-1 is 0 with a probability of at most
    sqrt(2 / (pi k)) and 1.25 % at k = 4096, where a move is +-1; elsewhere moves are larger.
    """
    seen = outcomes(emulated.UNSOUND_FP32[name], "fp32", inner)
    most = 2.0**15 if name == "tf32" else 2.0**16
    assert share(seen["single_term"]) > 0.99
    assert most / 2 < seen["single_term"].largest <= most
    assert share(seen["exact_sums"]) > 0.97


def test_the_bound_alone_does_not_see_tf32_at_large_k() -> None:
    """On normal input the error is a tenth of the bound at k = 4096: the reason for the others."""
    small, large = (outcomes(emulated.tf32, "fp32", k)["normal"] for k in (64, 4096))
    assert not small.passed
    assert large.passed
    assert 0.03 < large.largest < 0.3


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", list(emulated.UNSOUND_FP32))
def test_emulated_fp32_is_seen(name: str, inner: int) -> None:
    """Down to nine bf16 products, which miss the correct rounding of some single products."""
    outcome = outcomes(emulated.UNSOUND_FP32[name], "fp32", inner)["single_term"]
    assert outcome.wrong > 0
    assert not outcome.passed


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("fmt", LOW)
@pytest.mark.parametrize("name", list(emulated.UNSOUND_16_BITS))
def test_16_bit_sums_and_second_roundings_are_seen(name: str, fmt: str, inner: int) -> None:
    """By sums that are exact in FP32; fp16 before bf16 moves a sixteenth of all results."""
    outcome = outcomes(emulated.UNSOUND_16_BITS[name], fmt, inner)["exact_sums"]
    assert share(outcome) > 0.03
    if (name, fmt) == ("rounded_twice", "bf16"):
        assert share(outcome) == pytest.approx(1 / 16, abs=4 * (1 / 16 / outcome.compared) ** 0.5)


@pytest.mark.parametrize("fmt", ["fp32", *LOW])
@pytest.mark.parametrize("name", list(checks.PRODUCTS))
def test_every_kind_of_product_is_left_times_right(name: str, fmt: str) -> None:
    """In float64, where nothing rounds: forward and backward compute the same matrix."""
    operands = OPERANDS["exact_sums"](FORMATS[fmt], 64, SHAPE, 0)
    left, right = operands.left.double(), operands.right.double()
    assert torch.equal(checks.PRODUCTS[name](left, right), left @ right)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("fmt", ["fp32", *LOW])
def test_exact_operands_are_what_they_claim(fmt: str, inner: int) -> None:
    """All bits of single_term are in use; partial sums of exact_sums fit into 24 bits."""
    number = FORMATS[fmt]
    one = OPERANDS["single_term"](number, inner, SHAPE, 0)
    assert ((one.right != 0).sum(0) == 1).all()
    assert (one.left.double() / number.machine_epsilon % 2 == 1).all()
    sums = OPERANDS["exact_sums"](number, inner, SHAPE, 0)
    left, right = sums.left.double().abs(), sums.right.double().abs() * 2**9
    assert (left % 2 == 1).all()
    assert (right % 1 == 0).all()
    assert float(left.max() * right.max()) * inner <= 2**24


def test_a_tensor_core_exceeds_the_bound_of_rounding_and_keeps_twice_of_it() -> None:
    """1, then blocks of 8 terms that lose 7.9 u in the alignment, and u when the sum is cut."""
    blocks = 500
    block = torch.tensor([2.0**-24 * 127 / 64] * 7 + [2.0**-24 * 127 / 128])
    left = torch.cat([torch.tensor([1.0] + [0.0] * 7), block.repeat(blocks)])[None].bfloat16()
    right = torch.ones_like(left.T)
    got = emulated.tensor_core_sums(left, right, block=8, extra_bits=1)
    exact = float(left.double().sum())
    error, inner = abs(float(got) - exact), left.shape[1]
    assert gamma(inner, FP32) * exact < error < gamma(2 * inner, FP32) * exact


def test_a_bound_for_another_format_is_refused() -> None:
    x = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="no bound for a product in fp64; use fp32, bf16 or fp16"):
        product_bound(x, x, FORMATS["fp64"])
    assert torch.isinf(product_bound(x.half() * 60000, x.half(), FORMATS["fp16"])).all()


def check(product: checks.Product, count: int = 4) -> checks.Outcome:
    """Outcome of one small exact product in bf16."""
    ones = torch.ones(count, 4, dtype=torch.bfloat16)
    return checks.check_product(product, Operands("exact_sums", ones, ones[:4].T, exact=True))


def test_messages_say_what_is_wrong() -> None:
    def one_nan(left: Tensor, right: Tensor) -> Tensor:
        result = left @ right
        result[1, 2] = torch.nan
        return result

    assert check(torch.matmul).message.endswith("k = 4: 0 of 16 elements are wrong")
    outcome = check(one_nan)
    assert (outcome.compared, outcome.wrong, outcome.largest) == (16, 1, torch.inf)
    assert "1 of 16 elements are wrong; worst at (1, 2): got nan, want 0x1" in outcome.message
    outcome = check(lambda left, right: left.float() @ right.float())
    assert outcome.message.endswith("the result is torch.float32, not torch.bfloat16")
    assert not outcome.passed


def test_a_check_that_compared_nothing_fails() -> None:
    outcome = checks.Outcome("ulp of fp32", compared=0, wrong=0)
    assert not outcome.passed
    assert outcome.message == "ulp of fp32: no element was compared"
    assert not checks.check_repeats(lambda: [torch.empty(0)], "nothing").passed


def from_emin(values: Tensor, fmt: Format) -> Tensor:
    """An ulp that does not stop at the smallest normal number."""
    _, exponent = torch.frexp(values.double())
    step = torch.ldexp(torch.ones_like(values.double()), exponent - fmt.significand_bits)
    return torch.where(values.double().isfinite(), step, ulp(values, fmt))


#: Wrong forms of ulp and of round_to, with the function that they are compared with.
WRONG: dict[str, tuple[checks.OnFormat, checks.OnFormat]] = {
    "one exponent too high": (lambda x, f: 2 * ulp(x, f), ulp),
    "inexact power": (lambda x, f: torch.nextafter(ulp(x, f), torch.zeros(()).double()), ulp),
    "wrong at one exponent": (lambda x, f: ulp(x, f) * (1 + (ulp(x, f) == f.machine_epsilon)), ulp),
    "no subnormals": (from_emin, ulp),
    "NaN for infinity": (lambda x, f: torch.where(x.isinf(), torch.nan, round_to(x, f)), round_to),
    "zero without sign": (lambda x, f: round_to(x, f) + 0.0, round_to),
    "flushed to zero": (
        lambda x, f: torch.where(x.double().abs() < f.smallest_normal, x * 0.0, round_to(x, f)),
        round_to,
    ),
}


@pytest.mark.parametrize("fmt", ["fp64", "fp32", *LOW])
@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_steps_and_roundings_are_seen(name: str, fmt: str) -> None:
    function, reference = WRONG[name]
    assert checks.check_on_format(reference, reference, FORMATS[fmt], "x").passed
    outcome = checks.check_on_format(function, reference, FORMATS[fmt], "x")
    assert outcome.wrong > 0
    assert "elements are wrong; the first for " in outcome.message


@pytest.mark.parametrize("fmt", LOW)
def test_ties_to_even_are_told_from_ties_away(fmt: str) -> None:
    def away(x: Tensor, f: Format) -> Tensor:
        wide = x.double()
        nudged = torch.where(wide.isfinite(), wide + torch.sign(wide) * ulp(wide, f) / 2**20, wide)
        return round_to(nudged, f)

    outcome = checks.check_on_format(away, round_to, FORMATS[fmt], "x")
    assert outcome.wrong > FORMATS[fmt].emax


@pytest.mark.parametrize("fmt", ["fp64", "fp32", *LOW])
def test_every_exponent_of_the_format_is_there(fmt: str) -> None:
    number = FORMATS[fmt]
    exponents = range(number.emin - number.significand_bits + 1, number.emax + 1)
    values = set(every_exponent(number).tolist())
    assert {sign * 2.0**e for e in exponents for sign in (1, -1)} <= values


@pytest.mark.parametrize("fmt", ["fp64", "fp32", *LOW])
def test_flushed_subnormals_are_seen(fmt: str) -> None:
    """As results, and as operands alone."""
    flush, number = emulated.flushed, FORMATS[fmt]
    assert checks.check_subnormals(torch.mul, number).passed
    faults: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda left, right: flush(left * right),
        lambda left, right: flush(left) * flush(right),
    )
    for fault in faults:
        outcome = checks.check_subnormals(fault, number)
        assert outcome.wrong > 2 * number.significand_bits
    left, right = subnormal_pairs(number)
    assert torch.equal(left.double() * right.double(), (left * right).double())


def test_a_changed_bit_of_a_later_call_is_seen() -> None:
    calls = itertools.count()

    def drifting() -> list[Tensor]:
        x = torch.ones(100, dtype=torch.bfloat16)
        x[7] += 2.0**-7 * (next(calls) == 2)
        return [x, torch.tensor(torch.nan)]

    outcome = checks.check_repeats(drifting, "whiten")
    assert (outcome.compared, outcome.wrong) == (202, 1)
    assert outcome.message.startswith("whiten, called 3 times: 1 of 202 elements are wrong")
    assert checks.check_repeats(lambda: [torch.tensor([torch.nan, -0.0])], "whiten").passed


def test_moved_functions_return_to_the_cpu() -> None:
    assert checks.on_device(torch.add, "cpu")(torch.ones(2), 1).tolist() == [2, 2]
