"""The emulated engines of ``python -m tools.mismatch noise``: their rounding, on small tensors."""

import torch
from torch import nn

from tools.mismatch.engines import _fp8_blocks, _fp8_groups, _int8_rows, engine


def test_a_group_of_zeros_stays_zero_and_not_nan() -> None:
    """A zero block has scale 1, not 0 / 0."""
    for rounding in (_fp8_blocks, _fp8_groups, _int8_rows):
        assert torch.equal(rounding(torch.zeros(3, 300)), torch.zeros(3, 300))


def test_fp8_errs_by_at_most_half_a_step_of_its_group() -> None:
    """E4M3 has 3 fraction bits: a relative error of at most 2^-4, or half the smallest step."""
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    for rounded in (_fp8_groups(x), _fp8_blocks(x)):
        largest = x.abs().max()
        bound = (x.abs() * 2**-4).clamp(min=float(largest) / 448 * 2**-10)
        assert ((rounded - x).abs() <= bound * (1 + 1e-6)).all()
        assert (rounded != x).any()


def test_int8_errs_by_at_most_half_a_step_of_its_row() -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    step = x.abs().amax(1, keepdim=True) / 127
    error = (_int8_rows(x) - x).abs()
    assert (error <= step / 2 * (1 + 1e-5)).all()
    assert (error > step / 4).any()


def test_an_engine_is_a_copy_in_the_format_and_its_model_is_untouched() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {})()
            self.k_proj = nn.Linear(8, 8, bias=False)

    with torch.random.fork_rng():
        model = Tiny()
    before = model.k_proj.weight.detach().clone()
    assert engine(model, "bf16").k_proj.weight.dtype == torch.bfloat16
    rounded = engine(model, "int8").k_proj.weight.float()
    assert (rounded - before).abs().max() > 0
    keys = engine(model, "fp8 KV cache").k_proj(torch.ones(1, 8, dtype=torch.bfloat16))
    assert torch.equal(keys.float().to(torch.float8_e4m3fn).float(), keys.float())
    assert torch.equal(model.k_proj.weight, before)
