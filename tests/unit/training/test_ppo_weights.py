"""FP32 masters and moments, the cast that computes, one AdamW step against float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.bounds import gamma
from precision_lib.formats import FORMATS, get_format, ulp
from precision_lib.models.value_head import ValueHead
from precision_lib.training.trainer import ppo_step
from precision_lib.training.weights import BETAS, EPSILON, Weights, open_weights, perturbed
from tests.unit.small_pipelines import random_checkpoint
from tests.unit.small_runs import NAMES, configuration, opened, pipeline

FP32 = FORMATS["fp32"]
RATE = 1e-3


def weights_in(fmt: str, policy: Any = None, **changes: Any) -> Weights:
    head = ValueHead(torch.linspace(-1, 1, 32), torch.tensor(0.5))
    return open_weights(policy or pipeline().policy.model, head, fmt, RATE, **changes)


def in_order(model: Any) -> Tensor:
    """[P] the parameters of a model, one after the other."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_masters_and_moments_are_fp32_and_the_working_copy_is_their_cast(name: str) -> None:
    with opened(name) as run:
        weights = run.weights
        dtype = get_format(configuration(name).policy).dtype
        begun = weights.master.clone()
        for _ in range(2):
            assert weights.master.dtype == weights.gradient.dtype == torch.float32
            policy = weights.master[: len(weights.low)]
            assert {p.dtype for p in weights.golden.parameters()} == {torch.float32}
            assert {p.dtype for p in weights.working.parameters()} == {dtype}
            assert torch.equal(in_order(weights.golden), policy)
            assert torch.equal(in_order(weights.working), policy.to(dtype))
            assert torch.equal(weights.low, policy.to(dtype))
            assert torch.equal(weights.head_weight, weights.master[len(policy) : -1])
            assert torch.equal(weights.head_bias, weights.master[-1])
            ppo_step(run)
        moments = weights.optimizer.state[weights.master]
        assert {moments[m].dtype for m in ("exp_avg", "exp_avg_sq")} == {torch.float32}
        assert (weights.master != begun).double().mean() > 0.5


@pytest.mark.parametrize("fmt", ["bf16", "fp32"])
def test_originals_are_left_alone(fmt: str) -> None:
    policy = pipeline().policy.model
    before = in_order(policy)
    weights = weights_in(fmt)
    weights.gradient.fill_(1.0)
    weights.step()
    assert torch.equal(in_order(policy), before)
    assert not any(p.requires_grad for p in policy.parameters())
    assert not torch.equal(in_order(weights.working), before)


def adam_step(
    weights: Weights, gradient: Tensor, betas: tuple[float, float] = BETAS, decay: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The masters after the next step in float64 from the FP32 state before it, and a bound.

    m' = b1 m + (1 - b1) g and v' likewise are rounded at most 4 times each, the constants once;
    the step size, the root, its correction, the sum with epsilon, the quotient and the product at
    most 12 times with the root of v's; the difference once. The terms of m may cancel.
    """
    state = weights.optimizer.state.get(weights.master, {})
    zero = torch.zeros_like(weights.master)
    m, v = (state.get(name, zero).double() for name in ("exp_avg", "exp_avg_sq"))
    t, g, (b1, b2) = int(state.get("step", 0)) + 1, gradient.double(), betas
    new_m, new_v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    root = (new_v / (1 - b2**t)).sqrt() + EPSILON
    scale = RATE / (1 - b1**t) / root
    after = weights.master.double() * (1 - RATE * decay) - scale * new_m
    terms = b1 * m.abs() + (1 - b1) * g.abs()
    bound = scale * (gamma(5, FP32) * terms + gamma(16, FP32) * new_m.abs())
    return after, bound + FP32.unit_roundoff * (after.abs() + bound) + FP32.smallest_normal


def gradients(size: int, steps: int) -> list[Tensor]:
    """Of magnitudes from 1e-6 to 1, some of them 0."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(steps, size, generator=generator)
    scales = 10 ** (-6 * torch.rand(size, generator=generator))
    return list(drawn * scales * (torch.rand(size, generator=generator) > 0.1))


def test_steps_are_adamw_in_float64_within_rounding() -> None:
    """Without weight decay; wrong betas or a decay are outside the same bound."""
    weights = weights_in("bf16")
    for gradient in gradients(len(weights.master), 3):
        want, bound = adam_step(weights, gradient)
        others = [
            adam_step(weights, gradient, betas=(0.9, 0.999)),
            adam_step(weights, gradient, betas=(0.95, 0.95)),
            adam_step(weights, gradient, decay=0.01),
        ]
        weights.gradient.copy_(gradient)
        before = weights.master.clone()
        weights.step()
        assert not torch.equal(weights.master, before)
        error = (weights.master.double() - want).abs()
        assert (error <= bound).all(), float((error / bound).max())
        if int(weights.optimizer.state[weights.master]["step"]) > 1:  # the first has no past
            for wrong, limit in others:
                assert ((weights.master.double() - wrong).abs() > limit).double().mean() > 0.1


def test_gradients_are_added_in_fp32_where_a_bf16_sum_stands_still() -> None:
    weights = weights_in("bf16")
    parts = [256.0, 0.5, 0.5, 0.5]
    naive = torch.zeros((), dtype=torch.bfloat16)
    for part in parts:
        for leaf in weights.working.parameters():
            leaf.grad = torch.full_like(leaf, part)
        weights.head_weight.grad = torch.full_like(weights.head_weight, part)
        weights.collect_gradient()
        naive += part
        assert all(leaf.grad is None for leaf in weights.working.parameters())
        assert weights.head_weight.grad is None
    assert float(naive) == 256, "the planted values must vanish in bf16"
    assert weights.gradient[:-1].tolist() == [257.5] * (len(weights.gradient) - 1)
    assert weights.gradient[-1] == 0, "the bias had no gradient"


@pytest.mark.parametrize("architecture", ["GPT2", "Llama"])
def test_gradient_is_laid_out_as_the_masters_are(architecture: str) -> None:
    """d/dw sum w^2 / 2 is w, element by element; a GPT-2 stores its matrices transposed."""
    weights = weights_in("fp32", random_checkpoint(architecture).model)
    leaves = [*weights.working.parameters(), weights.head_weight, weights.head_bias]
    total = torch.stack([leaf.square().sum() / 2 for leaf in leaves]).sum()
    total.backward()
    weights.collect_gradient()
    assert torch.equal(weights.gradient, weights.master)


@pytest.mark.parametrize("fmt", ["bf16", "fp32"])
def test_tied_embeddings_stay_one_parameter(fmt: str) -> None:
    model = random_checkpoint(tie_word_embeddings=True).model
    untied = random_checkpoint().model
    weights = weights_in(fmt, model)
    embedding = model.get_input_embeddings().weight
    assert len(weights.low) == len(in_order(untied)) - embedding.numel()
    for _ in range(2):
        for policy in (weights.golden, weights.working):
            inside, outside = policy.get_input_embeddings(), policy.get_output_embeddings()
            assert inside.weight is outside.weight
            assert torch.equal(
                in_order(policy), weights.master[: len(weights.low)].to(policy.dtype)
            )
        weights.gradient.fill_(1.0)
        weights.step()


def moved_shares(master: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """Probability that w (1 + size n) rounds to another number than w, and to one an ulp away.

    The step is ulp(w); it is moved when |n| size |w| exceeds half of it, by one up to 3/2.
    """
    reach = size * master.double().abs() / ulp(master, FP32)

    def beyond(ulps: float) -> Tensor:
        return torch.erfc(ulps / reach / 2**0.5)

    return beyond(0.5), beyond(0.5) - beyond(1.5)


def test_perturbation_of_one_rounding_moves_the_share_of_weights_that_it_must() -> None:
    """Within 5 standard errors of the normal distribution's own; at a power of two steps differ."""
    master = weights_in("fp32").master
    moved = perturbed(master, 2.0**-24, seed=0)
    kept = torch.frexp(master)[0].abs() != 0.5
    kept &= master != 0
    distance = ((moved.double() - master.double()) / ulp(master, FP32)).abs()[kept]
    assert len(distance) > 10_000
    for got, share in zip(
        (distance > 0, distance == 1), moved_shares(master[kept], 2.0**-24), strict=True
    ):
        error = (share * (1 - share)).sum().sqrt()
        assert abs(float(got.double().sum() - share.sum())) <= 5 * error
    assert 0.4 < (distance > 0).double().mean() < 0.6, "about half, as the docstring says"
    assert (distance[distance > 0] == 1).double().mean() > 0.5


def test_perturbation_is_the_same_for_a_seed_and_in_every_format() -> None:
    one = weights_in("fp32", perturbation=2.0**-24, seed=1)
    again = weights_in("bf16", perturbation=2.0**-24, seed=1)
    other = weights_in("fp32", perturbation=2.0**-24, seed=2)
    none = weights_in("fp32")
    assert torch.equal(one.master, again.master)
    assert torch.equal(again.low, again.master[: len(again.low)].to(torch.bfloat16))
    assert not torch.equal(one.master, other.master)
    assert torch.equal(none.master[: len(none.low)], in_order(pipeline().policy.model))
    assert not torch.equal(one.master[len(one.low) :], none.master[len(one.low) :]), "the head too"


def test_head_is_a_copy() -> None:
    head = ValueHead(torch.ones(32), torch.tensor(1.0))
    weights = open_weights(pipeline().policy.model, head, "fp32", RATE)
    weights.gradient.fill_(1.0)
    weights.step()
    assert (head.weight == 1).all()
    assert head.bias == 1
    assert (weights.head_weight != 1).all()
