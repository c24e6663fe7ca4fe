"""The bounds where they are 0, infinite, or say that nothing can be decided."""

import math

import pytest
import torch
from torch import Tensor

from precision_lib import bounds
from precision_lib.formats import FORMATS, get_format
from tests.unit.bounds.textbook import CLIP


@pytest.mark.parametrize(
    ("count", "slots", "depth"),
    [
        (0, None, 0),
        (1, None, 0),
        (128, None, 127),
        (129, None, 128),
        (257, None, 129),
        (151_936, None, 138),
        (2, 10**6, 1),  # zeros around two terms do not round
        (300, 2048, 131),
    ],
)
def test_sum_depth_counts_the_roundings_of_a_blocked_sum(
    count: int, slots: int | None, depth: int
) -> None:
    assert bounds.sum_depth(count, slots) == depth


def test_gamma_says_nothing_beyond_one_over_u() -> None:
    assert bounds.gamma(1, FORMATS["fp32"]) == 2.0**-24 / (1 - 2.0**-24)
    with pytest.raises(ValueError, match="300 roundings in bf16 have no error bound"):
        bounds.gamma(300, get_format("bf16"))


def scalar(x: float) -> Tensor:
    return torch.tensor([[x]])


def test_clip_decides_nothing_within_rounding_of_its_limit_and_everything_beyond() -> None:
    """At r = 1 + c both gradients are legal, 1e-5 away only the right one is."""
    one, mask = scalar(1.0), torch.tensor([[True]])
    for shift, undecided in ((0.0, True), (1e-5, False), (-1e-5, False)):
        new = scalar(math.log(1 + CLIP) + shift)
        bound = bounds.policy_loss_gradient_bound(new, scalar(0.0), one, mask, CLIP)
        assert (float(bound) > 1) == undecided
        moved = CLIP + shift * 10  # values around 1e-7 of the border of [-0.2, 0.2]
        # R = 0 lies in the range: outside, v has the larger error and always counts.
        inside = bounds.value_loss_gradient_bound(scalar(moved), 0 * one, 0 * one, mask, CLIP)
        assert (float(inside) > 0.1) == undecided


def test_bound_is_zero_where_the_result_must_be_met_exactly() -> None:
    z = torch.tensor([[0.0, -math.inf]])
    exact = torch.tensor([-math.inf])
    assert float(bounds.log_softmax_bound(z, exact)) == 0
    assert bounds.entropy_gradient_bound(z, torch.ones(1))[0, 1] == 0
    x, mask = torch.full((2, 3), 0.1), torch.tensor([[True, True, False], [True, False, False]])
    assert (bounds.whiten_bound(x, mask) == 0).all()
    assert (bounds.group_advantages_bound(x) == 0).all()
    nothing, nan = torch.zeros(2, 3, dtype=torch.bool), torch.full((2, 3), math.nan)
    assert bounds.masked_mean_bound(nan, nothing) == 0
    assert bounds.policy_loss_bound(nan, nan, nan, nothing, CLIP) == 0
    assert bounds.value_loss_bound(nan, nan, nan, nothing, CLIP) == 0


def test_decided_clip_has_no_gradient_and_no_error_of_the_ratio() -> None:
    far, zero, one, mask = scalar(1e4), scalar(0.0), scalar(1.0), torch.tensor([[True]])
    assert bounds.policy_loss_gradient_bound(far, zero, one, mask, CLIP) == 0
    assert bounds.policy_loss_bound(far, zero, one, mask, CLIP) < 10 * 2.0**-24


def test_bound_is_infinite_only_where_the_exact_result_overflows() -> None:
    zero, one, mask = scalar(0.0), scalar(1.0), torch.tensor([[True]])
    assert bounds.kl_bound(scalar(-100.0), zero, "k3").isinf()
    for d in (-80.0, 1e38):
        assert bounds.kl_bound(scalar(d), zero, "k3").isfinite()
    for d, advantage, infinite in (
        (100.0, -1.0, True),
        (100.0, -1e-10, False),  # the ratio overflows, the product does not
        (1e4, -1e-10, True),
        (1e4, 1.0, False),
        (1e4, 0.0, False),
        (-1e4, -1.0, False),
    ):
        for f in (bounds.policy_loss_bound, bounds.policy_loss_gradient_bound):
            assert bool(f(scalar(d), zero, scalar(advantage), mask, CLIP).isinf()) == infinite
    assert bounds.value_loss_bound(scalar(1e30), zero, zero, mask, CLIP).isinf()
    assert bounds.value_loss_gradient_bound(scalar(1e30), zero, zero, mask, CLIP).isfinite()
    advantages, returns = bounds.gae_bound(-one * 3e38, one * 3e38, mask, 1.0, 1.0)
    assert advantages.isinf()
    assert returns.isfinite()


def test_whitening_promises_nothing_when_the_mean_swamps_the_deviation() -> None:
    x, mask = torch.tensor([[1e8, 1e8 + 8, 1e8 + 16]]), torch.ones(1, 3, dtype=torch.bool)
    assert bounds.whiten_bound(x, mask).isinf().all()
    assert bounds.whiten_bound(x - 1e8, mask).isfinite().all()
