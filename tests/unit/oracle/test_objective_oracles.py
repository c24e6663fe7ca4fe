"""The truth of today's objectives against another derivation: float64 autograd, and mpmath."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from precision_lib import oracle
from tests.selftest.cores.plain_torch import PlainTorch

CORE = PlainTorch(torch.float64)
DRAW = torch.Generator().manual_seed(5)
OLD = -torch.rand(4, 6, generator=DRAW, dtype=torch.float64)
NEW = OLD + torch.randn(4, 6, generator=DRAW, dtype=torch.float64) / 2
ADVANTAGES = torch.randn(4, 6, generator=DRAW, dtype=torch.float64)
MASK = torch.rand(4, 6, generator=DRAW) < 0.6
MASK[:, 0] = True
MASK[3] = False
CLIPS = {"clip_low": 0.2, "clip_high": 0.3}
PAIR = {"logprobs": NEW, "old_logprobs": OLD}
STATES = torch.randn(1, 3, 4, generator=DRAW, dtype=torch.float64)
LOGITS = torch.randn(1, 3, 5, generator=DRAW, dtype=torch.float64)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"aggregate {mode}": (
            "aggregate",
            {"values": NEW, "mask": MASK, "mode": mode, "denominator": d},
        )
        for mode, d in (("token_mean", None), ("sequence_mean", None), ("constant", 9.0))
    },
    "dapo": (
        "dapo_loss",
        PAIR | {"advantages": ADVANTAGES, "mask": MASK, "dual_clip": 1.4} | CLIPS,
    ),
    "cispo": ("cispo_loss", PAIR | {"advantages": ADVANTAGES, "mask": MASK} | CLIPS),
    "gspo": ("gspo_loss", PAIR | {"advantages": ADVANTAGES[:, 0], "mask": MASK} | CLIPS),
}


def exact(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def same(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, np.asarray(want), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("function", "inputs"), CASES.values(), ids=CASES)
def test_losses_and_gradients_are_those_of_autograd(function: str, inputs: dict[str, Any]) -> None:
    first = next(iter(inputs))
    leaf = inputs[first].clone().requires_grad_()
    loss = getattr(CORE, function)(**inputs | {first: leaf})
    same(getattr(oracle, function)(**exact(inputs)), loss.detach())
    (gradient,) = torch.autograd.grad(loss, leaf)
    same(getattr(oracle, f"{function}_gradient")(**exact(inputs)), gradient)


def _with_upstream(
    value: Callable[..., torch.Tensor], leaf: torch.Tensor
) -> tuple[torch.Tensor, np.ndarray[Any, Any], torch.Tensor]:
    leaf = leaf.clone().requires_grad_()
    result = value(leaf)
    up = torch.arange(1.0, result.numel() + 1, dtype=torch.float64).view(result.shape)
    return result.detach(), up.numpy(), torch.autograd.grad(result, leaf, up)[0]


def test_sequence_ratios_and_their_gradient() -> None:
    ratio, up, slope = _with_upstream(lambda x: CORE.sequence_ratio(x, OLD, MASK), NEW)
    given = exact(PAIR | {"mask": MASK})
    same(oracle.sequence_ratio(**given), ratio)
    same(oracle.sequence_ratio_gradient(**given, upstream=up), slope)


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_importance_weights(level: str, mode: str) -> None:
    given: dict[str, Any] = {"train_logprobs": NEW, "rollout_logprobs": OLD, "mask": MASK}
    options: dict[str, Any] = {"level": level, "mode": mode, "cap": 1.1}
    want = CORE.importance_weights(**given, **options)
    same(oracle.importance_weights(**exact(given), **options), want)


def test_linear_logprobs_and_both_gradients() -> None:
    weight, tokens = (
        LOGITS[0].T[:, :3] @ torch.ones(3, 4, dtype=torch.float64),
        torch.tensor([[0, 4, 2]]),
    )
    leaves = STATES.clone().requires_grad_(), weight.clone().requires_grad_()
    result = CORE.linear_token_logprobs(*leaves, tokens, 0.7)
    up = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    given = STATES.numpy(), weight.numpy(), tokens.numpy(), 0.7
    same(oracle.linear_token_logprobs(*given), result.detach())
    wants = torch.autograd.grad(result, leaves, up)
    for got, want in zip(
        oracle.linear_token_logprobs_gradients(*given, up.numpy()), wants, strict=True
    ):
        same(got, want)


def test_preferences_and_both_gradients() -> None:
    names = "policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected"
    given: dict[str, Any] = dict(
        zip(names, (NEW[:, 0], NEW[:, 1], OLD[:, 0], OLD[:, 1]), strict=True)
    )
    leaves = {name: given[name].clone().requires_grad_() for name in names[:2]}
    loss = CORE.dpo_loss(**given | leaves, beta=0.5)
    plain = exact(given) | {"beta": 0.5}
    same(oracle.dpo_loss(**plain), loss.detach())
    wants = torch.autograd.grad(loss, tuple(leaves.values()))
    for got, want in zip(oracle.dpo_loss_gradients(**plain), wants, strict=True):
        same(got, want)
    far = {name: np.zeros(1) for name in names} | {"policy_chosen": np.array([-900.0])}
    assert oracle.dpo_loss(**far, beta=1.0) == 900


def test_the_divergence_and_its_gradient() -> None:
    teacher = LOGITS.flip(-1)
    value, up, slope = _with_upstream(lambda x: CORE.jsd(x, teacher, 0.3), LOGITS)
    same(oracle.jsd(LOGITS.numpy(), teacher.numpy(), 0.3), value)
    same(oracle.jsd_gradient(LOGITS.numpy(), teacher.numpy(), 0.3, up), slope)


def test_the_divergence_of_nearly_equal_models_keeps_its_digits() -> None:
    student, teacher, beta = [0.0, 1.0], [0.0, 1.0 + 1e-9], 0.3
    with mpmath.workdps(60):
        q, p = ([mpmath.exp(x) for x in map(mpmath.mpf, z)] for z in (student, teacher))
        q, p = ([x / sum(z) for x in z] for z in (q, p))
        m = [beta * a + (1 - mpmath.mpf(beta)) * b for a, b in zip(p, q, strict=True)]
        terms = [
            beta * a * mpmath.log(a / c) + (1 - mpmath.mpf(beta)) * b * mpmath.log(b / c)
            for a, b, c in zip(p, q, m, strict=True)
        ]
        want = float(sum(terms))
    got = oracle.jsd(np.array([[student]]), np.array([[teacher]]), beta).item()
    assert got == pytest.approx(want, rel=1e-6)
    assert 0 < got < 1e-18


def test_leave_one_out_and_bootstrap() -> None:
    same(oracle.rloo_advantages(np.array([[1.0, 2.0, 6.0]])), [[-3.0, -1.5, 4.5]])
    mask, bootstrap = torch.arange(6) < torch.tensor([[6], [2], [0], [1]]), ADVANTAGES[:, 5]
    want = CORE.gae(NEW, OLD, mask, 0.9, 0.8, bootstrap)
    got = oracle.gae(NEW.numpy(), OLD.numpy(), mask.numpy(), 0.9, 0.8, bootstrap.numpy())
    for mine, theirs in zip(got, want, strict=True):
        same(mine, theirs)


def test_sums_that_cancel_and_ratios_beyond_float64() -> None:
    new, old = np.array([[60.0, -60.0, 1e-3], [800.0, 900.0, 0.0]]), np.zeros((2, 3))
    mask = np.ones((2, 3), bool)
    assert oracle.sequence_ratio(new, old, mask)[0] == math.exp(1e-3 / 3)
    assert oracle.importance_weights(new, old, mask, "sequence", "truncate", 2.0)[1, 0] == 2
    assert oracle.importance_weights(new, old, mask, "sequence", "mask", 2.0)[1, 0] == 0
