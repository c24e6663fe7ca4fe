"""Checks of what a device is asked for: FP32 products, one rounding, exact steps, same bits again.

The hazard. TF32, emulated FP32 and 16-bit accumulation are switched off by the runtime, and an
environment variable (``NVIDIA_TF32_OVERRIDE``, ``CUBLAS_EMULATE_SINGLE_PRECISION``) switches them
on again without a word. A switch says what was asked for. A check says what the device does.

An error bound alone does not show TF32: it grows with k, the error with sqrt(k). So two of the
three kinds of input leave no room for an error at any k, in any order of summation:

- ``single_term``: one nonzero product per element. Its p-bit operands use the last bit, so that an
  operand in a shorter format changes every result. The result is the product, rounded once.
- ``exact_sums``: integers times a power of two, k |a||b| below 2^24. Every partial sum is exact in
  FP32, also where a tensor core cuts bits off. The result is the sum, rounded once.
- ``normal``: as in a model, within :func:`precision_lib.bounds.product_bound`.

Each check takes the function under test, so that a unit test can give it a wrong one.

m rows, n columns, k the inner dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from precision_lib.bounds import product_bound, rounding_bound
from precision_lib.forensics.device_inputs import Operands, every_exponent, subnormal_pairs
from precision_lib.formats import Format, format_of, round_to

Product = Callable[[Tensor, Tensor], Tensor]
OnFormat = Callable[[Tensor, Format], Tensor]

#: Heads of the batched product.
_HEADS = 4


@dataclass(frozen=True)
class Outcome:
    """Counts of one check.

    Attributes:
        check: what was checked.
        compared, wrong: elements compared, and those that differ by more than is allowed.
        detail: the worst element; "" where nothing is wrong.
        largest: largest error as a multiple of the limit, or of half an ulp where none is allowed.
    """

    check: str
    compared: int
    wrong: int
    detail: str = ""
    largest: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing was wrong."""
        return self.compared > 0 and self.wrong == 0

    @property
    def message(self) -> str:
        """One sentence with the counts and the worst element."""
        if not self.compared:
            return f"{self.check}: no element was compared"
        counts = f"{self.check}: {self.wrong} of {self.compared} elements are wrong"
        return f"{counts}; {self.detail}" if self.detail else counts


def on_device(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """``function`` with its tensor arguments moved to ``device`` and its result to the CPU."""

    def moved(*arguments: Any) -> Any:
        there = (a.to(device) if isinstance(a, Tensor) else a for a in arguments)
        return function(*there).cpu()

    return moved


def _linear(left: Tensor, right: Tensor) -> Tensor:
    return F.linear(left, right.T.contiguous())


def _batched(left: Tensor, right: Tensor) -> Tensor:
    heads = left.view(_HEADS, -1, left.shape[-1])
    return torch.bmm(heads, right.expand(_HEADS, -1, -1)).flatten(0, 1)


def _input_gradient(left: Tensor, right: Tensor) -> Tensor:
    x = left.new_zeros(left.shape[0], right.shape[1], requires_grad=True)
    return torch.autograd.grad(F.linear(x, right), x, left)[0]


def _weight_gradient(left: Tensor, right: Tensor) -> Tensor:
    weight = left.new_zeros(left.shape[0], right.shape[1], requires_grad=True)
    return torch.autograd.grad(F.linear(right, weight), weight, left.T.contiguous())[0]


#: Name to a function of left [m, k] and right [k, n] that returns left @ right [m, n], each through
#: an operation of the models; m is a multiple of 4.
PRODUCTS: dict[str, Product] = {
    "matmul": torch.matmul,
    "linear": _linear,
    "batched": _batched,
    "input_gradient": _input_gradient,
    "weight_gradient": _weight_gradient,
}


def check_product(product: Product, operands: Operands) -> Outcome:
    """Compare ``product(left, right)`` with the exact product, rounded once to the format.

    Args:
        product: takes and returns CPU tensors of the operands' dtype.
    """
    left, right = operands.left, operands.right
    fmt = format_of(left.dtype)
    check = f"{operands.kind} product in {fmt.name}, {left.shape[0]} rows, k = {left.shape[1]}"
    got = product(left, right)
    if got.dtype != left.dtype:
        detail = f"the result is {got.dtype}, not {left.dtype}"
        return Outcome(check, got.numel(), got.numel(), detail, float("inf"))
    exact = left.double() @ right.double()
    if operands.exact:
        want = round_to(exact, fmt)
        none = torch.zeros_like(want)
        return _compare(check, got.double(), want, none, rounding_bound(want, fmt))
    limit = product_bound(left, right, fmt)
    return _compare(check, got.double(), exact, limit, limit)


def _compare(check: str, got: Tensor, want: Tensor, limit: Tensor, unit: Tensor) -> Outcome:
    """Outcome of |got - want| <= limit, element by element; ``unit`` scales the largest error."""
    error = (got - want).abs()
    wrong = ~((got == want) | (error <= limit))
    times = torch.where(got == want, 0.0, (error / unit).nan_to_num(nan=float("inf")))
    detail = ""
    if wrong.any():
        worst = torch.where(wrong, times, -1.0).argmax()
        index = tuple(int(i) for i in torch.unravel_index(worst, got.shape))
        detail = (
            f"worst at {index}: got {float(got[index]).hex()}, want {float(want[index]).hex()}, "
            f"limit {float(limit[index]):.3g}"
        )
    largest = float(times.max()) if times.numel() else 0.0
    return Outcome(check, got.numel(), int(wrong.sum()), detail, largest)


def check_on_format(function: OnFormat, reference: OnFormat, fmt: Format, check: str) -> Outcome:
    """Compare ``function`` with ``reference`` at every exponent of ``fmt``, bit for bit.

    The values are given in float64, also between those of the format, and in the format itself.

    Args:
        function: of (values, format), for example ``ulp`` on the device.
        reference: the same on the CPU.
        check: its name in the outcome.
    """
    values = every_exponent(fmt)
    own = round_to(values, fmt).to(fmt.dtype)
    got = torch.cat([function(values, fmt), function(own, fmt)])
    want = torch.cat([reference(values, fmt), reference(own, fmt)])
    given = torch.cat([values, own.double()])
    return _same(f"{check} of {fmt.name}", got, want, given)


def check_subnormals(multiply: Product, fmt: Format) -> Outcome:
    """Compare products that are subnormal or have a subnormal operand.

    Every product is exact, so that a device that takes subnormals for 0 gives other values.

    Args:
        multiply: element by element, of two [n] tensors of ``fmt``; returns one.
    """
    left, right = subnormal_pairs(fmt)
    got = multiply(left, right)
    return _same(f"subnormals in {fmt.name}", got, left.double() * right.double(), left.double())


def check_repeats(call: Callable[[], Sequence[Tensor]], check: str, times: int = 2) -> Outcome:
    """Compare the results of further calls with those of the first one, bit for bit.

    Args:
        call: returns CPU tensors, the same number each time.
        check: its name in the outcome.
        times: further calls.
    """
    first = torch.cat([t.flatten().double() for t in call()])
    again = [torch.cat([t.flatten().double() for t in call()]) for _ in range(times)]
    place = torch.arange(len(first)).repeat(times)
    return _same(f"{check}, called {times + 1} times", torch.cat(again), first.repeat(times), place)


def _same(check: str, got: Tensor, want: Tensor, given: Tensor) -> Outcome:
    """Outcome of equality in value and sign of zero, NaN equal to NaN; all are [n]."""
    got, want = got.double(), want.double()
    equal = (got == want) & (torch.signbit(got) == torch.signbit(want))
    wrong = ~(equal | (got.isnan() & want.isnan()))
    detail = ""
    if wrong.any():
        worst = int(wrong.int().argmax())
        detail = (
            f"the first for {float(given[worst]).hex()}: got {float(got[worst]).hex()}, want "
            f"{float(want[worst]).hex()}"
        )
    return Outcome(check, got.numel(), int(wrong.sum()), detail)
