"""What the core promises of KL estimators, the full KL and its controller, beyond conformance.

B sequences, T tokens, V vocabulary entries; d = policy - reference.
"""

import math

import pytest
import torch
from torch import Tensor

from precision_lib import bounds, oracle
from precision_lib.formats import FORMATS, Format, format_of, round_to
from precision_lib.ppo import kl, kl_penalty
from precision_lib.ppo.kl import update_kl_coefficient
from tests.unit.ppo.layouts import (
    DEFAULT_FORMATS,
    FLOATS,
    all_same_bits,
    random,
    same_bits,
    within,
)

FP64 = FORMATS["fp64"]
ESTIMATORS = pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
SERIES_UP_TO = 0.25


def with_gradient(
    policy: Tensor, ref: Tensor, estimator: str, upstream: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, and the gradients that flow to both."""
    leaves = [x.detach().requires_grad_() for x in (policy, ref)]
    value = kl_penalty(leaves[0], leaves[1], estimator)
    up = torch.ones_like(value) if upstream is None else upstream
    gradients = torch.autograd.grad(value, leaves, up)
    return value.detach(), gradients[0], gradients[1]


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    ref, noise = random(2, *shape, seed=seed)
    return ref + 0.5 * noise - 3, ref - 3


def relative_limit(fmt: Format) -> float:
    """Of k3 as d^2 times a polynomial, |d| <= 1/4, by Horner's rule with n coefficients 1/k!.

    n is the least with a truncation below u/2 of d^2/2. Coefficient i passes at most 2i + 4
    roundings: its own, a product and a sum per step, and those with d^2. All terms are positive
    for d < 0; for d > 0 the sum of their magnitudes, k3(-d), is at most 1.2 times theirs.
    """
    n = 1
    while 2 * SERIES_UP_TO**n / math.factorial(n + 2) > fmt.unit_roundoff / 2:
        n += 1
    growth = oracle.k3(-SERIES_UP_TO) / oracle.k3(SERIES_UP_TO)
    return bounds.gamma(2 * n + 4, fmt) * growth + fmt.unit_roundoff


# The known traps


@pytest.mark.parametrize("size", [1e-4, 1e-7])
def test_k3_near_zero_keeps_its_digits_in_fp32(size: float) -> None:
    """exp(-d) - 1 + d has an error of 6e-8, which is 12 times k3 at 1e-4 and 1e7 times at 1e-7."""
    d = torch.tensor([[size, -size]])
    want = torch.tensor([[oracle.k3(x) for x in d[0].tolist()]], dtype=torch.float64)
    limit = want * relative_limit(FORMATS["fp32"])
    within(got=kl_penalty(d, torch.zeros_like(d), "k3"), want=want, limit=limit)
    trap = torch.exp(-d) - 1 + d
    assert ((trap - want).abs() > want).all()  # not one digit


@FLOATS
def test_k3_has_a_small_relative_error_however_near(dtype: torch.dtype) -> None:
    """From the largest d of the series down to where d^2 vanishes; in float64 too."""
    fmt = format_of(dtype)
    d = torch.cat([SERIES_UP_TO * 2.0 ** -torch.linspace(0, 40, 500), torch.zeros(1)])
    d = torch.cat([d, -d])[None].to(dtype)
    got = kl_penalty(d, torch.zeros_like(d), "k3", dtype)
    want = torch.tensor([[oracle.k3(x) for x in d[0].tolist()]], dtype=torch.float64)
    limit = want * relative_limit(fmt) + fmt.smallest_subnormal
    within(got=got, want=want, limit=limit)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_are_never_negative_at_any_16_bit_log_ratio(name: str, estimator: str) -> None:
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(FORMATS[name].dtype)
    d = codes[torch.isfinite(codes)][None]
    for dtype in (d.dtype, torch.float32, torch.float64):
        got = kl_penalty(d, torch.zeros_like(d), estimator, dtype)
        assert got.numel() > 60_000
        assert (got >= 0).all()


@ESTIMATORS
@FLOATS
def test_identical_log_probs_have_a_kl_of_exactly_0(estimator: str, dtype: torch.dtype) -> None:
    lp = -random(3, 7).abs()
    same_bits(got=kl_penalty(lp, lp, estimator, dtype), want=torch.zeros(3, 7, dtype=dtype))
    _, to_policy, to_ref = with_gradient(lp, lp, estimator)
    slope = torch.full((3, 7), 1.0 if estimator == "k1" else 0.0)
    assert torch.equal(to_policy, slope)
    assert torch.equal(to_ref, -slope)


@ESTIMATORS
@pytest.mark.parametrize("content", [math.nan, math.inf, -math.inf])
def test_a_slot_without_upstream_gradient_gets_0_whatever_it_holds(
    estimator: str, content: float
) -> None:
    policy, ref = pair(2, 3)
    upstream = torch.ones(2, 3)
    upstream[1, 2] = 0
    want = with_gradient(policy, ref, estimator, upstream)
    for changed in (policy, ref):
        inputs = [policy.clone(), ref.clone()]
        inputs[0 if changed is policy else 1][1, 2] = content
        got = with_gradient(inputs[0], inputs[1], estimator, upstream)
        same_bits(got=got[0].flatten()[:5], want=want[0].flatten()[:5])
        for one, other in zip(got[1:], want[1:], strict=True):
            assert torch.equal(one, other)
            assert one[1, 2] == 0


@FLOATS
def test_k3_beyond_its_format_is_inf_and_its_neighbours_are_untouched(dtype: torch.dtype) -> None:
    far = math.log(format_of(dtype).largest)
    policy = torch.tensor([[-1.1 * far, -0.9 * far, -math.inf, math.inf]], dtype=dtype)
    got = kl_penalty(policy, torch.zeros_like(policy), "k3", dtype)
    assert got.isinf().tolist() == [[True, False, True, True]]
    assert (got > 0).all()


# Formats


@ESTIMATORS
@pytest.mark.parametrize(("one", "other", "want"), DEFAULT_FORMATS, ids=str)
def test_the_result_is_fp32_or_wider_and_gradients_in_their_inputs_formats(
    estimator: str, one: torch.dtype, other: torch.dtype, want: torch.dtype
) -> None:
    policy, ref = pair(2, 5)
    value, to_policy, to_ref = with_gradient(policy.to(one), ref.to(other), estimator)
    assert (value.dtype, to_policy.dtype, to_ref.dtype) == (want, one, other)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_16_bit_format_rounds_inputs_and_every_operation(name: str) -> None:
    fmt = FORMATS[name]
    policy, ref = pair(4, 50)
    d = round_to(round_to(policy, fmt) - round_to(ref, fmt), fmt)
    k2 = round_to(round_to(0.5 * d, fmt) * d, fmt)
    for estimator, want in (("k1", d), ("k2", k2)):
        got = kl_penalty(policy, ref, estimator, fmt.dtype)
        assert got.dtype == fmt.dtype
        same_bits(got=got.double(), want=want)
    got = kl_penalty(policy, ref, "k3", fmt.dtype)
    assert got.dtype == fmt.dtype
    want = torch.from_numpy(oracle.kl_penalty(d.numpy(), 0 * d.numpy(), "k3"))
    zero = torch.zeros_like(d)
    within(got=got, want=want, limit=bounds.kl_bound(d, zero, "k3", fmt))
    fp32 = bounds.kl_bound(d, zero, "k3")
    assert ((got - want).abs() > fp32 + bounds.rounding_bound(want.abs() + fp32, fmt)).any()


@ESTIMATORS
def test_float64_asked_for_is_float64_throughout(estimator: str) -> None:
    policy, ref = pair(4, 50)
    got = kl_penalty(policy, ref, estimator, torch.float64)
    assert got.dtype == torch.float64
    want = torch.from_numpy(oracle.kl_penalty(policy.numpy(), ref.numpy(), estimator))
    # The difference of two FP32 numbers is exact in the oracle only to float64's rounding.
    within(got=got, want=want, limit=2 * bounds.kl_bound(policy, ref, estimator, FP64))


# Gradients


def textbook(policy: Tensor, ref: Tensor, estimator: str) -> Tensor:
    ratio = ref.exp() / policy.exp()
    return {"k1": -ratio.log(), "k2": ratio.log().square() / 2, "k3": ratio - ratio.log() - 1}[
        estimator
    ]


@ESTIMATORS
def test_gradients_are_those_of_float64_autograd(estimator: str) -> None:
    """Of the textbook form; there is one with respect to the reference too."""
    policy, ref = pair(3, 40)
    upstream = random(3, 40, seed=1)
    _, *got = with_gradient(policy, ref, estimator, upstream)
    leaves = [x.double().requires_grad_() for x in (policy, ref)]
    value = textbook(leaves[0], leaves[1], estimator)
    want = torch.autograd.grad(value, leaves, upstream.double())
    # The textbook form takes exp and log: it errs by some u of its own, d by u of log-probs.
    own = 16 * FP64.unit_roundoff * (1 + (ref - policy).exp() + policy.abs() + ref.abs())
    limit = bounds.kl_gradient_bound(policy, ref, estimator, upstream) + upstream.abs() * own
    for one, other in zip(got, want, strict=True):
        within(got=one, want=other, limit=limit)


@ESTIMATORS
def test_float64_gradients_agree_with_differences(estimator: str) -> None:
    """A central difference errs by h^2/6 of the third derivative, e^-d for k3 and 0 for the others,
    and by the values' error over h."""
    policy, ref = (x.double() for x in pair(2, 4))
    h = 2.0**-17  # the cube root of u, near which the two errors balance
    # Values and slopes within h of here are no larger than twice those here, and u besides.
    values = 2 * bounds.kl_bound(policy, ref, estimator, FP64) + FP64.unit_roundoff
    own = bounds.kl_gradient_bound(policy, ref, estimator, torch.ones(2, 4), FP64)
    third = float((ref - policy + h).exp().max())
    limit = h**2 / 6 * third + float(values.max()) / h + float(own.max())
    assert torch.autograd.gradcheck(
        lambda p, r: kl_penalty(p, r, estimator),
        (policy.requires_grad_(), ref.requires_grad_()),
        eps=h,
        atol=limit,
        rtol=0.0,
    )


@pytest.mark.parametrize("log_ratio", [-80.0, 80.0, 1e-30])
def test_a_far_or_tiny_log_ratio_has_a_finite_gradient(log_ratio: float) -> None:
    policy, ref = torch.full((1, 1), log_ratio), torch.zeros(1, 1)
    _, gradient, _ = with_gradient(policy, ref, "k3")
    want = torch.tensor([[-math.expm1(-policy.item())]], dtype=torch.float64)
    limit = bounds.kl_gradient_bound(policy, ref, "k3", torch.ones(1, 1))
    within(got=gradient, want=want, limit=limit)
    if log_ratio == 1e-30:
        same_bits(got=gradient, want=policy)  # the textbook form gives 0


# Bit for bit


@ESTIMATORS
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_padding_order_and_company_change_no_bit(estimator: str, scale: float) -> None:
    """At 0.01 all log-ratios are near and take a shorter way, until a far one joins them."""
    policy, ref = (x * scale for x in pair(4, 9))
    want = with_gradient(policy, ref, estimator)
    order = torch.tensor([2, 3, 0, 1])
    got = with_gradient(policy[order], ref[order], estimator)
    all_same_bits(got=got, want=[x[order] for x in want])
    for content in (math.nan, -50.0):
        longer = torch.nn.functional.pad(policy, (0, 3), value=content)
        got = with_gradient(longer, torch.nn.functional.pad(ref, (0, 3)), estimator)
        all_same_bits(got=[x[:, :9] for x in got], want=want)
    alone = with_gradient(policy[:1, :1], ref[:1, :1], estimator)
    all_same_bits(got=alone, want=[x[:1, :1] for x in want])


@ESTIMATORS
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=str)
def test_no_tokens_give_no_results(estimator: str, shape: tuple[int, int]) -> None:
    x = torch.zeros(shape)
    assert [r.shape for r in with_gradient(x, x, estimator)] == [shape] * 3


def test_a_first_call_in_inference_mode_does_not_harm_training() -> None:
    """The coefficients of k3 are made once; tensors made in inference mode cannot be trained."""
    kl._coefficients.cache_clear()
    policy, ref = pair(2, 3)
    with torch.inference_mode():
        want = kl_penalty(policy, ref, "k3")
    got, gradient, _ = with_gradient(policy, ref, "k3")
    same_bits(got=got, want=want)
    assert (gradient != 0).all()


# The controller


@pytest.mark.parametrize(
    ("observed", "steps", "want"),
    [
        pytest.param(6.0, 100, 0.5, id="on_target_nothing_changes"),
        pytest.param(6.6, 100, 0.5 * 1.05, id="ten_percent_above_over_half_the_horizon"),
        pytest.param(5.4, 100, 0.5 * 0.95, id="ten_percent_below"),
        pytest.param(600.0, 200, 0.5 * 1.2, id="far_above_is_clipped_to_20_percent"),
        pytest.param(0.0, 200, 0.5 * 0.8, id="far_below_is_clipped_to_20_percent"),
        pytest.param(-1.0, 200, 0.5 * 0.8, id="a_negative_estimate_is_far_below"),
        pytest.param(600.0, 0, 0.5, id="no_steps_no_change"),
    ],
)
def test_the_controller_follows_the_relative_error(
    observed: float, steps: int, want: float
) -> None:
    """0.5 (1 + clip(observed/6 - 1) steps/200); a handful of roundings of numbers of size 1."""
    got = update_kl_coefficient(0.5, observed, 6.0, 200, steps)
    assert abs(got - want) <= 8 * FP64.unit_roundoff


def test_the_coefficient_stays_positive_up_to_the_most_steps_allowed() -> None:
    """1 - 0.2 steps/horizon vanishes at 5 horizons, where the call is refused."""
    assert update_kl_coefficient(0.1, 0.0, 6.0, horizon=100, steps=499) > 0
