"""Weights on a grid: every 16-bit number, every midpoint, and what is between them."""

import pytest
import torch

from precision_lib.formats import get_format
from precision_lib.models.grid import grid_counts, weights_on_grid
from precision_lib.record.context import Context
from precision_lib.reporting.grid import grid_lines
from tests.unit.small_pipelines import random_checkpoint


def codes(fmt: str) -> torch.Tensor:
    """The finite numbers of a 16-bit format in ascending order, zero once, float64."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(get_format(fmt).dtype).double()
    finite: torch.Tensor = numbers[numbers.isfinite()]
    distinct: torch.Tensor = finite.unique()
    return distinct


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
def test_every_number_is_exact_every_midpoint_half_way_and_a_quarter_neither(fmt: str) -> None:
    numbers = codes(fmt)
    middle = (numbers[:-1] + numbers[1:]) / 2
    quarter = (numbers[:-1] * 3 + numbers[1:]) / 4
    given = get_format(fmt)
    for values, counts in ((numbers, (len(numbers), 0)), (middle, (0, len(middle)))):
        assert torch.equal(values.float().double(), values), "these are FP32 numbers"
        assert grid_counts(values.float(), given) == counts
    assert grid_counts(quarter.float(), given) == (0, 0)
    assert grid_counts(torch.tensor([torch.inf, torch.nan]), given) == (0, 0)


def test_a_model_has_the_shares_of_its_weights() -> None:
    model = random_checkpoint().model
    generic = weights_on_grid(model, "bf16")
    assert generic.n == sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert weights_on_grid(model, "bf16").exact == 1
    embedding.data = 1 + torch.zeros_like(embedding) + 2**-8
    shares = weights_on_grid(model, "bf16")
    assert shares.halfway == embedding.numel() / shares.n
    assert generic.halfway < 0.01


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="has no parameters"):
        weights_on_grid(torch.nn.ReLU(), "bf16")


def test_a_summary_warns_above_one_percent_half_way() -> None:
    shares = {"exact": 0.207, "halfway": 0.081}
    [line, warning] = grid_lines(Context(weights_on_grid={"bf16": shares}))
    assert line[0].endswith(
        "20.7 % exactly representable in bf16, 8.1 % half-way between two numbers"
    )
    assert warning[0].startswith("WARNING: above 1.0 % half-way")
    assert len(grid_lines(Context(weights_on_grid={"bf16": shares | {"halfway": 0.01}}))) == 1
    assert grid_lines(Context()) == []
