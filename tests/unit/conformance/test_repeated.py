"""A function called again: a stale count is a memory of earlier calls, rounding in 16 bits none."""

from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.repeated import called_again

MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])
X = {"x": torch.linspace(0.3, 2.9, 8).view(2, 4), "mask": MASK}


def rounded_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, **rest: Any) -> Tensor:
    """A surrogate whose ratio is computed in the format of its input."""
    ratio = (logprobs - old_logprobs).exp()
    terms: Tensor = -(ratio * rest["advantages"]).float()
    return terms.masked_select(mask).mean()


def inputs(dtype: torch.dtype) -> Inputs:
    return Inputs(X).each(lambda x: x.to(dtype) if x.is_floating_point() else x)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_in_the_input_format_is_no_memory(seed: int) -> None:
    """Right by chance in one shape and not in another: that says nothing of earlier calls."""
    draw = torch.Generator().manual_seed(seed)
    a, b, c = (torch.rand(1, 1, generator=draw).bfloat16() for _ in range(3))
    mask = torch.ones(1, 1, dtype=torch.bool)
    pair = {"logprobs": -a, "old_logprobs": -b, "advantages": c}
    assert called_again(
        "policy_loss", rounded_ratio, Inputs(pair | {"mask": mask}, {"clip_range": 10.0})
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_count_kept_by_shape_is(dtype: torch.dtype) -> None:
    counts: dict[torch.Size, Tensor] = {}

    def stale(x: Tensor, mask: Tensor) -> Tensor:
        count = counts.setdefault(mask.shape, mask.sum())
        return torch.where(mask, x, 0).float().sum() / count

    with pytest.raises(ConformanceFailure, match="only after a call of the same shape"):
        called_again("masked_mean", stale, inputs(dtype))
