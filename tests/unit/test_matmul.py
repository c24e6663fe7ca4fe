"""The CPU's 16-bit matrix products: certified against float64, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from precision_lib.bounds import gamma, rounding_bound
from precision_lib.formats import FORMATS, format_of, round_to
from precision_lib.matmul import FP32AccumulatedMatmul

LOW = (torch.bfloat16, torch.float16)


def draw(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


#: Name to (function of operands, operand shapes); the first operand's last dimension is summed.
PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "mm": (torch.mm, ((7, 300), (300, 5))),
    "matmul_2d": (torch.matmul, ((7, 300), (300, 5))),
    "matmul_4d": (torch.matmul, ((2, 3, 7, 300), (2, 3, 300, 5))),
    "matmul_broadcast": (torch.matmul, ((2, 3, 7, 300), (300, 5))),
    "operator": (lambda a, b: a @ b, ((7, 300), (300, 5))),
    "bmm": (torch.bmm, ((3, 7, 300), (3, 300, 5))),
    "mv": (torch.mv, ((7, 300), (300,))),
    "dot": (torch.dot, ((300,), (300,))),
    "linear": (F.linear, ((2, 7, 300), (5, 300))),
    "einsum": (lambda a, b: torch.einsum("bik,bkj->bij", a, b), ((3, 7, 300), (3, 300, 5))),
    "addmm": (lambda a, b, c: torch.addmm(c, a, b), ((7, 300), (300, 5), (5,))),
    "baddbmm": (lambda a, b, c: torch.baddbmm(c, a, b), ((3, 7, 300), (3, 300, 5), (3, 7, 5))),
    "linear_bias": (F.linear, ((2, 7, 300), (5, 300), (5,))),
}


def sum_of_magnitudes(product: Callable[..., Tensor], operands: list[Tensor]) -> Tensor:
    return product(*(x.double().abs() for x in operands))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", list(PRODUCTS))
def test_product_is_the_fp32_accumulated_one_rounded_once(name: str, dtype: torch.dtype) -> None:
    """|got - exact| <= half an ulp at exact + FP32 accumulation error, k + 1 terms with a bias."""
    product, shapes = PRODUCTS[name]
    operands = [draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    with FP32AccumulatedMatmul():
        got = product(*operands)
    exact = product(*(x.double() for x in operands))
    accumulation = gamma(301, FORMATS["fp32"]) * sum_of_magnitudes(product, operands)
    limit = accumulation + rounding_bound(exact.abs() + accumulation, format_of(dtype))
    assert got.dtype == dtype
    assert got.numel() > 0
    assert ((got.double() - exact).abs() <= limit).all()
    # Nearly all equal the correctly rounded exact product: FP32 noise decides only close ties.
    rounded = round_to(exact, format_of(dtype))
    near_tie = (exact - rounded).abs() > rounding_bound(exact, format_of(dtype)) - accumulation
    assert ((got.double() == rounded) | near_tie).all()


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_backward_products_follow_the_same_rule(dtype: torch.dtype) -> None:
    x = draw(40, 300, dtype=dtype, seed=0).requires_grad_()
    w = draw(5, 300, dtype=dtype, seed=1).requires_grad_()
    grad = draw(40, 5, dtype=dtype, seed=2)
    with FP32AccumulatedMatmul():
        F.linear(x, w).backward(grad)
    with torch.no_grad():
        want_x = (grad.float() @ w.float()).to(dtype)
        want_w = (grad.float().T @ x.float()).to(dtype)
    assert x.grad is not None
    assert w.grad is not None
    assert torch.equal(x.grad, want_x)
    assert torch.equal(w.grad, want_w)


def test_a_second_rounding_would_be_caught() -> None:
    """The certificate is not vacuous: partial sums rounded to bf16 (split-K) exceed the bound."""
    a, b = (draw(7, 300, dtype=torch.bfloat16, seed=i) for i in (0, 1))
    halves = [a[:, s].float() @ b[:, s].float().T for s in (slice(0, 150), slice(150, 300))]
    got = (halves[0].bfloat16() + halves[1].bfloat16()).double()
    exact = a.double() @ b.double().T
    accumulation = gamma(301, FORMATS["fp32"]) * (a.double().abs() @ b.double().abs().T)
    limit = accumulation + rounding_bound(exact.abs() + accumulation, FORMATS["bf16"])
    assert ((got - exact).abs() > limit).any()


def test_in_place_and_out_variants() -> None:
    a, b, c = (draw(6, 6, dtype=torch.bfloat16, seed=i) for i in range(3))
    want = torch.addmm(c.float(), a.float(), b.float()).bfloat16()
    with FP32AccumulatedMatmul():
        in_place = c.clone().addmm_(a, b)
        out = torch.empty_like(c)
        torch.addmm(c, a, b, out=out)
    assert torch.equal(in_place, want)
    assert torch.equal(out, want)


def test_inference_mode_is_covered() -> None:
    """Composite operations are not decomposed there before the context sees them."""
    x, w = draw(4, 64, dtype=torch.bfloat16, seed=0), draw(3, 64, dtype=torch.bfloat16, seed=1)
    want = (x.float() @ w.float().T).bfloat16()
    with torch.inference_mode(), FP32AccumulatedMatmul():
        assert torch.equal(F.linear(x, w), want)
        assert torch.equal(x @ w.T, want)


def test_wider_formats_are_untouched() -> None:
    for dtype in (torch.float32, torch.float64):
        a, b = draw(9, 33, dtype=dtype, seed=0), draw(33, 9, dtype=dtype, seed=1)
        with FP32AccumulatedMatmul():
            got = a @ b
        assert torch.equal(got, a @ b)


def test_mixed_operands_are_still_an_error() -> None:
    """The context must not hide a dtype mismatch that every real kernel refuses."""
    with FP32AccumulatedMatmul(), pytest.raises(RuntimeError, match="dtype"):
        torch.mm(torch.zeros(2, 2, dtype=torch.bfloat16), torch.zeros(2, 2))
