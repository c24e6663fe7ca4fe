"""What the core promises of the two losses and of the ratio report beyond the conformance tests.

B sequences, T tokens; clip range 0.2 unless said otherwise.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from precision_lib import bounds
from precision_lib.formats import FORMATS, format_of
from precision_lib.ppo import policy_loss, value_loss
from tests.unit.ppo.layouts import (
    DEFAULT_FORMATS,
    FLOATS,
    all_same_bits,
    ragged,
    random,
    same_bits,
    within,
)

CLIP = 0.2
FP64 = FORMATS["fp64"]
ONE = torch.ones(1, 1, dtype=torch.bool)
Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {"policy_loss": policy_loss, "value_loss": value_loss}
both = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def with_gradient(loss: Loss, *inputs: Tensor, clip: float = CLIP) -> tuple[Tensor, Tensor]:
    """Loss and its gradient with respect to the first of its four tensors."""
    leaf = inputs[0].detach().requires_grad_()
    value = loss(leaf, *inputs[1:], clip)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def on_one_token(loss: Loss, moving: float, old: float, third: float) -> tuple[float, float]:
    """Loss and gradient of a single FP32 token."""
    value, gradient = with_gradient(
        loss, torch.tensor([[moving]]), torch.tensor([[old]]), torch.tensor([[third]]), ONE
    )
    return value.item(), gradient.item()


def step(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(new, old, advantages or returns): some tokens within the clip range, some beyond."""
    old, noise, third = random(3, *shape, seed=seed)
    return old + 0.3 * noise, old, third


# The known traps


@pytest.mark.parametrize("log_ratio", [12.0, 89.0, 100.0, 1e4, math.inf])
@FLOATS
def test_a_large_ratio_behind_the_clip_has_a_gradient_of_0(
    log_ratio: float, dtype: torch.dtype
) -> None:
    """The loss is -(1 + c) A; autograd of the formula multiplies 0 by exp(100) = inf."""
    new, old = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0 - log_ratio, -1.0]])
    advantages, mask = torch.ones(1, 2, dtype=dtype), ragged(2)
    value, gradient = with_gradient(policy_loss, new.to(dtype), old.to(dtype), advantages, mask)
    wanted = torch.promote_types(dtype, torch.float32)
    limit = bounds.rounding_bound(torch.tensor(1.1), FORMATS["fp32"])
    within(got=value, want=torch.tensor(-1.1, dtype=torch.float64), limit=limit)
    same_bits(got=gradient.abs(), want=torch.tensor([[0.0, 0.5]], dtype=dtype))
    assert value.dtype == wanted


def test_autograd_of_the_formula_gives_nan_there() -> None:
    new = torch.tensor([[-1.0]], requires_grad=True)
    ratio = (new - torch.tensor([[-101.0]])).exp()
    (-torch.minimum(ratio, ratio.clamp(1 - CLIP, 1 + CLIP)).mean()).backward()
    assert new.grad is not None
    assert new.grad.isnan().all()


@pytest.mark.parametrize("advantage", [0.0, -1e-30, -1e-45])
def test_a_ratio_beyond_fp32_counts_where_its_product_is_not(advantage: float) -> None:
    """e^100 is inf in FP32, -1e-30 e^100 is not, and 0 times it is 0."""
    exact = float(torch.tensor(advantage, dtype=torch.float32)) * math.exp(100)
    value, gradient = on_one_token(policy_loss, 0.0, -100.0, advantage)
    limit = bounds.rounding_bound(torch.tensor(exact), FORMATS["fp32"])
    exact_tensor = torch.tensor(exact, dtype=torch.float64)
    within(got=torch.tensor(-value), want=exact_tensor, limit=limit)
    within(got=torch.tensor(-gradient), want=exact_tensor, limit=limit)


def test_a_loss_that_fp32_cannot_hold_is_inf_and_not_nan() -> None:
    assert on_one_token(policy_loss, 0.0, -100.0, -1.0) == (math.inf, math.inf)
    assert on_one_token(value_loss, 3e38, 0.0, -3e38)[0] == math.inf


@both
def test_the_contents_of_masked_slots_change_no_bit(loss: Loss) -> None:
    """NaN or inf in masked slots of any argument: same loss, same gradient, 0 in those slots."""
    mask = ragged(6, 2, 0, 4)
    inputs = [x.masked_fill(~mask, 0) for x in step(*mask.shape)]
    want = with_gradient(loss, *inputs, mask)
    for content in (math.nan, math.inf, -math.inf, 3e38):
        for i in range(3):
            changed = [x.masked_fill(~mask, content) if j == i else x for j, x in enumerate(inputs)]
            all_same_bits(got=with_gradient(loss, *changed, mask), want=want)
        together = [x.masked_fill(~mask, content) for x in inputs]
        all_same_bits(got=with_gradient(loss, *together, mask), want=want)
    assert (want[1][~mask] == 0).all()
    assert (want[1][mask] != 0).any()


@both
def test_an_empty_mask_gives_0_and_a_gradient_of_0(loss: Loss) -> None:
    x = torch.full((2, 3), math.nan)
    value, gradient = with_gradient(loss, x, x, x, torch.zeros(2, 3, dtype=torch.bool))
    assert value == 0
    assert torch.equal(gradient, torch.zeros(2, 3))


@both
def test_bf16_counts_go_beyond_256(loss: Loss) -> None:
    """300 tokens of one kind and 600 without a loss: a third of the loss of one."""
    size = torch.zeros(3, 300, dtype=torch.bfloat16)
    size[0] = 1
    zeros = torch.zeros_like(size)
    if loss is policy_loss:  # ratio 1, advantage 1
        value, gradient = with_gradient(loss, zeros, zeros, size, ragged(300, 300, 300))
        want, slope = -1 / 3, -1 / 900
    else:  # error 1
        value, gradient = with_gradient(loss, size, size, zeros, ragged(300, 300, 300))
        want, slope = 1 / 6, 1 / 900
    same_bits(got=value, want=torch.tensor(want))
    same_bits(got=gradient[:1], want=torch.full((1, 300), slope, dtype=torch.bfloat16))
    assert (gradient[1:] == 0).all()


def test_the_ratio_of_identical_policies_is_exactly_1() -> None:
    """Then the loss is minus the mean advantage, and the gradient -A / n, without a tolerance."""
    lp = -random(4, 8).abs() * 20
    advantages = random(4, 8)
    value, gradient = with_gradient(policy_loss, lp, lp.clone(), advantages, ragged(8, 8, 8, 8))
    same_bits(got=value, want=-advantages.double().mean().float())
    same_bits(got=gradient, want=-advantages / 32)  # a power of two: exact


# Case by case


@pytest.mark.parametrize(
    ("ratio", "advantage", "counts"),
    [
        pytest.param(2.0, 3.0, None, id="larger_and_good_is_clipped"),
        pytest.param(0.5, -3.0, None, id="smaller_and_bad_is_clipped"),
        pytest.param(0.5, 3.0, 0.5, id="smaller_and_good_counts"),
        pytest.param(2.0, -3.0, 2.0, id="larger_and_bad_counts"),
        pytest.param(1.1, 3.0, 1.1, id="within_the_range_counts"),
        pytest.param(0.9, -3.0, 0.9, id="within_the_range_and_bad_counts"),
    ],
)
def test_the_clipped_surrogate_in_each_of_its_cases(
    ratio: float, advantage: float, counts: float | None
) -> None:
    """-A r with its gradient where r counts, -A times the limit and 0 where it does not."""
    limit = 1 + CLIP if ratio > 1 else 1 - CLIP
    new = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    inputs = (new, torch.zeros(1, 1), torch.tensor([[advantage]]), ONE)
    value, gradient = with_gradient(policy_loss, *inputs)
    want = torch.tensor(-advantage * (counts or limit), dtype=torch.float64)
    within(got=value, want=want, limit=bounds.policy_loss_bound(*inputs, CLIP, FP64))
    slope = torch.full((1, 1), -advantage * (counts or 0.0), dtype=torch.float64)
    within(got=gradient, want=slope, limit=bounds.policy_loss_gradient_bound(*inputs, CLIP, FP64))


@pytest.mark.parametrize(
    ("value", "target", "want"),
    [
        pytest.param(0.25, 0.0, (1 / 32, 0.25), id="within_the_range"),
        pytest.param(1.0, 0.0, (0.5, 1.0), id="beyond_it_and_the_error_is_larger"),
        pytest.param(1.0, 2.0, (1.125, 0.0), id="beyond_it_and_the_clipped_error_is_larger"),
        pytest.param(-1.0, 0.0, (0.5, -1.0), id="below_it_and_the_error_is_larger"),
        pytest.param(-1.0, -2.0, (1.125, 0.0), id="below_it_and_the_clipped_error_is_larger"),
        pytest.param(0.0, 0.0, (0.0, 0.0), id="no_error"),
    ],
)
def test_the_value_loss_in_each_of_its_cases(
    value: float, target: float, want: tuple[float, float]
) -> None:
    """Old value 0, clip range 1/2, binary fractions: exact."""
    inputs = (torch.tensor([[value]]), torch.zeros(1, 1), torch.tensor([[target]]), ONE)
    loss, gradient = with_gradient(value_loss, *inputs, clip=0.5)
    assert (loss.item(), gradient.item()) == want


# Formats and gradients


@both
@pytest.mark.parametrize(("one", "other", "want"), DEFAULT_FORMATS, ids=str)
def test_the_loss_is_fp32_or_wider_and_the_gradient_in_its_inputs_format(
    loss: Loss, one: torch.dtype, other: torch.dtype, want: torch.dtype
) -> None:
    new, old, third = step(2, 5)
    value, gradient = with_gradient(loss, new.to(one), old.to(other), third.to(other), ragged(5, 3))
    assert value.dtype == want
    assert gradient.dtype == one


def textbook_policy_loss(
    new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """As a weighted mean of the larger of two losses."""
    ratio = torch.exp(new - old)
    losses = torch.stack([-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)])
    return losses.amax(0)[mask].mean()


def textbook_value_loss(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> Tensor:
    clipped = old + (values - old).clamp(-clip, clip)
    errors = torch.stack([returns - values, returns - clipped])
    return 0.5 * errors.square().amax(0)[mask].mean()


#: By name: the formula, the bound of its value, that of its gradient.
TEXTBOOK: dict[str, tuple[Loss, Loss, Loss]] = {
    "policy_loss": (
        textbook_policy_loss,
        bounds.policy_loss_bound,
        bounds.policy_loss_gradient_bound,
    ),
    "value_loss": (textbook_value_loss, bounds.value_loss_bound, bounds.value_loss_gradient_bound),
}


@pytest.mark.parametrize("name", LOSSES)
@FLOATS
def test_losses_and_gradients_are_those_of_float64_autograd(name: str, dtype: torch.dtype) -> None:
    mask = ragged(40, 25, 3)
    inputs = [x.to(dtype) for x in step(*mask.shape)]
    textbook, value_bound, gradient_bound = TEXTBOOK[name]
    value, gradient = with_gradient(LOSSES[name], *inputs, mask)
    want, slope = with_gradient(textbook, *(x.double() for x in inputs), mask)
    arithmetic = format_of(value.dtype)
    limit = value_bound(*inputs, mask, CLIP, arithmetic)
    within(got=value, want=want, limit=limit)
    limits = gradient_bound(*inputs, mask, CLIP, arithmetic)
    rounding = bounds.rounding_bound(slope.abs() + limits, format_of(dtype))
    within(got=gradient, want=slope, limit=limits + torch.where(mask, rounding, 0))
    in_fp64 = value_bound(*inputs, mask, CLIP, FP64)
    once = bounds.rounding_bound(want.abs() + in_fp64, arithmetic)
    within(got=value, want=want, limit=2 * in_fp64 + once)  # inside, it is float64 in any case


@pytest.mark.parametrize("name", LOSSES)
def test_float64_gradients_agree_with_differences(name: str) -> None:
    """A central difference errs by h^2/6 of the third derivative and by the values' error over h.

    Away from the border of the clip. The third derivative is |A| r / n, or 0 for the value loss.
    """
    mask = ragged(4, 2)
    new, old, third = (x.double() for x in step(2, 4))
    distance = new - old if name == "value_loss" else (new - old).exp() - 1
    h = 2.0**-17
    assert ((distance.abs() - CLIP).abs() > 4 * h).all()  # neither border within reach
    new = new.requires_grad_()
    _, value_bound, gradient_bound = TEXTBOOK[name]
    fixed = (new.detach(), old, third, mask, CLIP, FP64)
    size = float((third.abs() * (new.detach() - old + h).exp()).max())
    own = float(gradient_bound(*fixed).max())
    # The values within h of here are no larger than twice those here.
    limit = h**2 / 6 * size + 2 * float(value_bound(*fixed)) / h + own
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, old, third, mask, CLIP), new, eps=h, atol=limit, rtol=0.0
    )


@both
def test_the_gradient_scales_with_the_upstream_and_flows_to_the_first_argument_alone(
    loss: Loss,
) -> None:
    inputs = [x.requires_grad_() for x in step(2, 6)]
    mask = ragged(6, 3)
    _, once = with_gradient(loss, *inputs, mask)
    (4 * loss(*inputs, mask, CLIP)).backward()
    assert inputs[0].grad is not None
    same_bits(got=inputs[0].grad, want=4 * once)
    assert inputs[1].grad is None
    assert inputs[2].grad is None
    with torch.no_grad():
        assert not loss(*inputs, mask, CLIP).requires_grad
    assert not loss(inputs[0].detach(), *inputs[1:], mask, CLIP).requires_grad


@both
def test_loss_scaling_reaches_a_16_bit_gradient_before_it_is_rounded(loss: Loss) -> None:
    """A gradient of 2^-30 is 0 in fp16, that of the loss times 2^16 is not."""
    new = torch.zeros(1, 1, dtype=torch.float16, requires_grad=True)
    old, third = torch.zeros(1, 1), torch.full((1, 1), 2.0**-30)
    (2.0**16 * loss(new, old, third, ONE, CLIP)).backward()
    assert new.grad is not None
    same_bits(got=new.grad, want=torch.full((1, 1), -(2.0**-14), dtype=torch.float16))


@pytest.mark.parametrize("log_ratio", [705.0, 709.78])
def test_a_float64_ratio_near_the_largest_number_is_not_cut(log_ratio: float) -> None:
    new = torch.zeros(1, 1, dtype=torch.float64)
    inputs = (new, new - log_ratio, new - 1, ONE)
    want = torch.tensor(math.exp(log_ratio), dtype=torch.float64)
    limit = bounds.policy_loss_bound(*inputs, CLIP, FP64)
    within(got=policy_loss(*inputs, CLIP), want=want, limit=limit)


# Bit for bit


@both
def test_padding_and_the_order_of_sequences_change_no_bit(loss: Loss) -> None:
    """The sum over tokens is in float64, in an order that FP32 does not see."""
    mask = ragged(11, 4, 7, 0)
    inputs = step(*mask.shape)
    value, gradient = with_gradient(loss, *inputs, mask)
    longer = [torch.nn.functional.pad(x, (0, 5), value=math.nan) for x in inputs]
    got, got_gradient = with_gradient(loss, *longer, torch.nn.functional.pad(mask, (0, 5)))
    all_same_bits(got=[got, got_gradient[:, :11]], want=[value, gradient])
    order = torch.tensor([2, 3, 0, 1])
    turned = with_gradient(loss, *(x[order] for x in inputs), mask[order])
    all_same_bits(got=turned, want=[value, gradient[order]])


@both
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)], ids=str)
def test_no_tokens_give_0(loss: Loss, shape: tuple[int, int]) -> None:
    x = torch.zeros(shape)
    value, gradient = with_gradient(loss, x, x, x, x.bool())
    assert value == 0
    assert gradient.shape == shape
