"""A value head is the least-squares minimiser, and its predictions lie on the format's grid."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from precision_lib.bounds import gamma
from precision_lib.formats import FORMATS
from precision_lib.models.value_head import (
    RIDGE,
    RIDGES,
    ValueHead,
    choose_ridge,
    explained_variance,
    fit_value_head,
    load_value_head,
    predict_values,
    save_value_head,
)
from precision_lib.runtime import deterministic

pytestmark = pytest.mark.unit

U32 = FORMATS["fp32"].unit_roundoff
STATES, SIZE = 400, 12


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features of different size with a mean, returns with noise; float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    hidden = torch.randn(STATES, SIZE, generator=generator, dtype=torch.float64) @ mix + 3.0
    noise = torch.randn(STATES, generator=generator, dtype=torch.float64)
    return hidden, hidden @ mix[0] + noise - 7.0


def test_the_fit_is_what_lstsq_finds() -> None:
    """The ridge moves w by at most RIDGE s^2 / lambda_min relative to |w|; FP32 rounding by u."""
    hidden, returns = problem()
    head = fit_value_head(hidden, returns)
    design = np.column_stack([hidden.numpy(), np.ones(STATES)])
    want = np.linalg.lstsq(design, returns.numpy(), rcond=None)[0]
    centred = (hidden - hidden.mean(0)).numpy()
    covariance = centred.T @ centred / STATES
    moved = RIDGE * np.trace(covariance) / SIZE / np.linalg.eigvalsh(covariance)[0]
    limit = (moved + U32) * float(np.linalg.norm(want[:-1]))
    assert np.linalg.norm(head.weight.numpy() - want[:-1]) <= limit
    mean_norm = float(hidden.mean(0).norm())
    assert abs(float(head.bias) - want[-1]) <= limit * mean_norm + U32 * abs(want[-1])
    assert (head.weight.dtype, head.bias.dtype) == (torch.float32, torch.float32)


def objective(hidden: torch.Tensor, returns: torch.Tensor, head: ValueHead) -> torch.Tensor:
    """[H + 1] gradient of the ridge objective in float64 at the FP32 head."""
    weight = head.weight.double().requires_grad_()
    bias = head.bias.double().requires_grad_()
    scale = float((hidden - hidden.mean(0)).square().mean())
    error = predict_values(hidden, weight, bias, "fp64") - returns
    loss = error.square().mean() + RIDGE * scale * weight.square().sum()
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [weight, bias])])


def test_the_gradient_at_the_optimum_is_zero_up_to_rounding_of_the_head() -> None:
    """gradient = 2 A (w - w*): at most 2 |A| u |w| for the one rounding of weight and bias."""
    hidden, returns = problem()
    head = fit_value_head(hidden, returns)
    design = torch.cat([hidden, torch.ones(STATES, 1, dtype=torch.float64)], dim=1)
    largest = float(torch.linalg.eigvalsh(design.mT @ design / STATES)[-1])
    size = float(torch.cat([head.weight, head.bias.reshape(1)]).norm())
    limit = 2 * largest * U32 * size
    assert float(objective(hidden, returns, head).norm()) <= limit
    untrained = ValueHead(torch.zeros(SIZE), torch.zeros(()))
    assert float(objective(hidden, returns, untrained).norm()) > limit


def test_fewer_states_than_features_have_a_fit_all_the_same() -> None:
    """Interpolation, up to the ridge: it costs at most RIDGE s^2 |w|^2 of the objective."""
    hidden, returns = (x[: SIZE // 2] for x in problem())
    head = fit_value_head(hidden, returns)
    values = predict_values(hidden, head.weight.double(), head.bias.double(), "fp64")
    centred = hidden - hidden.mean(0)
    interpolating = torch.linalg.pinv(centred) @ (returns - returns.mean())
    allowed = RIDGE * float(centred.square().mean()) * float(interpolating.square().sum())
    size = float(torch.cat([head.weight, head.bias.reshape(1)]).norm())
    rounding = U32 * size * float((hidden.square().sum(1) + 1).mean().sqrt())
    error = float((values - returns).square().mean().sqrt())
    assert error <= allowed**0.5 + rounding
    assert explained_variance(values, returns) > explained_variance(0 * values, returns)


def test_states_that_do_not_vary_give_the_mean_return() -> None:
    head = fit_value_head(torch.ones(4, 3), torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert torch.equal(head.weight, torch.zeros(3))
    assert float(head.bias) == 3.0


@pytest.mark.parametrize(
    ("hidden", "returns", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0), r"M, H >= 1 .* \(0, 3\)"),
        (torch.zeros(2, 3), torch.zeros(3), r"got \(2, 3\) and \(3,\)"),
        (torch.tensor([[1.0, torch.nan]]), torch.zeros(1), "hidden holds 1 non-finite"),
        (torch.zeros(2, 1), torch.tensor([1.0, torch.inf]), "returns holds 1 non-finite"),
    ],
)
def test_what_cannot_be_fitted_is_named(
    hidden: torch.Tensor, returns: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_value_head(hidden, returns)


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp32", "fp64"])
def test_predictions_are_one_rounding_of_the_format_away(fmt: str) -> None:
    """Operands on the grid, FP32 (or wider) accumulation, bias inside, one rounding."""
    hidden, returns = problem()
    head = fit_value_head(hidden, returns)
    form = FORMATS[fmt]
    with deterministic():
        got = predict_values(hidden.view(4, -1, SIZE), head.weight, head.bias, fmt)
    assert got.dtype == form.dtype
    assert got.shape == (4, STATES // 4)
    h, w, b = (x.to(form.dtype).double() for x in (hidden, head.weight, head.bias))
    exact = (h @ w + b).view(4, -1)
    wide = FORMATS["fp64" if fmt == "fp64" else "fp32"]
    accumulated = gamma(SIZE + 1, wide) * (h.abs() @ w.abs() + b.abs()).view(4, -1)
    limit = accumulated + form.unit_roundoff * (exact.abs() + accumulated)
    assert bool(((got.double() - exact).abs() <= limit).all())


def test_a_bias_added_after_the_rounding_would_not_pass() -> None:
    """The planted alternative: product rounded, then bias added and rounded again."""
    hidden, returns = problem()
    head = fit_value_head(hidden, returns)
    with deterministic():
        got = predict_values(hidden, head.weight, head.bias, "bf16")
        h, w, b = (x.bfloat16() for x in (hidden, head.weight, head.bias))
        twice = (h @ w) + b
    assert not torch.equal(got, twice)


@pytest.mark.parametrize("fmt", ["bf16", "fp32"])
def test_gradients_reach_weight_and_bias(fmt: str) -> None:
    hidden, returns = problem()
    head = fit_value_head(hidden, returns)
    weight, bias = head.weight.clone().requires_grad_(), head.bias.clone().requires_grad_()
    with deterministic():
        predict_values(hidden, weight, bias, fmt).sum().backward()
    assert bias.grad is not None
    assert float(bias.grad) == STATES  # 400 = 25 * 2^4 is a bf16 number
    assert weight.grad is not None
    form = FORMATS[fmt]
    want = hidden.to(form.dtype).double().sum(0)
    limit = (form.unit_roundoff + gamma(STATES, FORMATS["fp32"])) * (
        hidden.to(form.dtype).double().abs().sum(0)
    )
    assert bool(((weight.grad.double() - want).abs() <= limit).all())


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"do not fit: \(2, 3\), \(4,\), \(\)"):
        predict_values(torch.zeros(2, 3), torch.zeros(4), torch.zeros(()), "fp32")
    with pytest.raises(ValueError, match="unknown number format 'int8'"):
        predict_values(torch.zeros(2, 4), torch.zeros(4), torch.zeros(()), "int8")


def test_explained_variance_of_the_mean_is_zero_and_of_the_truth_one() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 2.0), returns) == 0.0
    assert np.isnan(explained_variance(returns, torch.ones(3)))


def test_a_saved_head_comes_back_with_its_digest(tmp_path: Path) -> None:
    head = fit_value_head(*problem())
    path = tmp_path / "below" / "value_head.safetensors"
    save_value_head(head, path)
    again = load_value_head(path)
    assert torch.equal(again.weight, head.weight)
    assert again.sha256 == head.sha256
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    moved = head.weight.clone()
    moved[0] = torch.nextafter(moved[0], torch.tensor(9.0))
    assert ValueHead(moved, head.bias).sha256 != head.sha256
    assert ValueHead(head.weight, head.bias + 1).sha256 != head.sha256


def test_files_that_are_no_value_head_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no value head at"):
        load_value_head(tmp_path / "none.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="must hold FP32 'weight'"):
        load_value_head(tmp_path / "half.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_value_head(tmp_path / "torn.safetensors")


def test_chosen_ridge_forgets_what_only_the_sequences_know() -> None:
    """More features than sequences, returns that no feature knows: only a large ridge is right."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(32).repeat_interleave(16)
    hidden = torch.randn(32, 64, generator=generator)[groups]
    hidden = hidden + 0.1 * torch.randn(len(groups), 64, generator=generator)
    noise = torch.randn(32, generator=generator)[groups]
    ridge, explained = choose_ridge(hidden, noise, groups)
    assert ridge == RIDGES[-1]
    assert explained < explained_variance(
        predict_values(hidden, *_parts(fit_value_head(hidden, noise)), "fp64"), noise
    ), "the default ridge learns the sequences by heart"


def test_chosen_ridge_keeps_what_the_states_do_know() -> None:
    generator = torch.Generator().manual_seed(1)
    groups = torch.arange(64).repeat_interleave(8)
    hidden = torch.randn(len(groups), 8, generator=generator)
    ridge, explained = choose_ridge(hidden, hidden[:, 0] * 3 + 1, groups)
    assert ridge == RIDGES[0]
    # u of FP32 in the targets; the ridge takes 2^-24 of the weight.
    assert 1 - explained < 2.0**-40


def test_a_single_group_has_nothing_to_hold_out() -> None:
    ridge, explained = choose_ridge(torch.ones(4, 2), torch.ones(4), torch.zeros(4))
    assert ridge == RIDGE
    assert math.isnan(explained)


def _parts(head: ValueHead) -> tuple[Tensor, Tensor]:
    return head.weight, head.bias
