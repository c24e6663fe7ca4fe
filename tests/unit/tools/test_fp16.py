"""Both ends of fp16's range, on planted gradients and a planted overflow."""

import pytest
import torch

from precision_lib.forensics.h6.updates import Batch
from tests.unit.small_pipelines import random_checkpoint
from tools.fp16 import FP16, Held, measured
from tools.fp16_tables import parts_of


def test_gradients_are_counted_as_fp16_holds_them() -> None:
    held = Held()
    held.see(torch.tensor([0.0, 1e-9, -1e-6, 1e-3, -2.0]), "planted")
    plain, scaled = held.as_json()["scales"]
    assert (held.n, held.largest.value, held.largest.module) == (4, 2.0, "planted")
    assert plain == {
        "loss_scale": 1.0,
        "zero_frac": 0.25,
        "subnormal_frac": 0.25,
        "overflow": 0,
    }
    assert (scaled["zero_frac"], scaled["subnormal_frac"], scaled["overflow"]) == (0.0, 0.0, 1)


def small_batch(advantage: float) -> Batch:
    tokens = torch.arange(2 * 6).view(2, 6) + 1
    advantages = torch.tensor([[advantage], [-advantage]]).expand(2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    return Batch(tokens, mask, torch.full((2, 5), -5.0), advantages)


def test_an_output_beyond_fp16_is_named_and_a_usual_one_is_below() -> None:
    model = random_checkpoint().model
    usual = measured(model, small_batch(1.0))
    assert 0 < usual["largest_output"]["value"] < usual["largest_finite"] == FP16.largest
    assert usual["tokens"] == 10
    assert usual["gradients"]["logits"]["n"] > 0
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        model.get_submodule(name).weight.mul_(1e7)
    planted = measured(model, small_batch(1.0))
    assert planted["largest_output"]["module"] == name
    assert planted["largest_output"]["value"] > FP16.largest


def test_advantages_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="no gradient differs from 0"):
        measured(random_checkpoint().model, small_batch(0.0))


@pytest.mark.parametrize("kept", [1.0, 0.4])
def test_a_step_that_is_lost_is_told_from_noise(kept: float) -> None:
    true, noise = 0.01 * torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    ratio = kept * true + 0.6 * noise
    k3 = torch.expm1(ratio) - ratio
    square = true.square().mean()
    metrics = {
        "log_ratio_nsr": {"value": float(((ratio - true).square().mean() / square).sqrt())},
        "kl_k3_rel_error": {"value": float(k3.mean() / (square / 2)) - 1},
    }
    # Five standard errors of a slope, of independent noise, over 100,000 tokens.
    assert parts_of(metrics) == pytest.approx((kept, 0.6), abs=5 * 0.6 / 100_000**0.5)
