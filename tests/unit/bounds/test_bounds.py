"""The bounds, both ways: a sound FP32 evaluation keeps them, and comes near; a wrong one does not.

A bound that holds may still be useless. So each is confronted with textbook formulas in FP32 on
adversarial input, where the largest error must stay below the bound and above a hundredth of it,
and with wrong evaluations of the same formulas, which must exceed it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from precision_lib import bounds, oracle
from tests.unit.bounds import textbook
from tests.unit.bounds.textbook import CLIP


class Case(NamedTuple):
    """A bound with what it is about: inputs, a textbook formula, the truth, the limit.

    ``settings`` are the arguments behind the tensors that oracle and bound need.
    """

    draw: Callable[[torch.Generator], Iterator[tuple[Any, ...]]]
    formula: Callable[..., Tensor]
    exact: Callable[..., object]
    bound: Callable[..., Any]
    settings: tuple[str | float, ...] = ()
    gradient: bool = False
    upstream: bool = False


def only_logits(generator: torch.Generator) -> Iterator[tuple[Tensor]]:
    yield from ((z,) for z, _ in textbook.logits(generator))


def only_finite_logits(generator: torch.Generator) -> Iterator[tuple[Tensor]]:
    """Differentiating p log p step by step is NaN at a -inf logit."""
    yield from ((torch.where(z.isinf(), -20.0, z),) for z, _ in textbook.logits(generator))


def _kl(estimator: str) -> dict[str, Case]:
    def formula(policy: Tensor, ref: Tensor) -> Tensor:
        return textbook.kl_penalty(policy, ref, estimator)

    value = Case(textbook.logprob_pairs, formula, oracle.kl_penalty, bounds.kl_bound, (estimator,))
    slope = value._replace(
        exact=oracle.kl_penalty_gradient,
        bound=bounds.kl_gradient_bound,
        gradient=True,
        upstream=True,
    )
    return {estimator: value, f"{estimator}_gradient": slope}


def _with_gradient(name: str, draw: Any, settings: tuple[float, ...] = ()) -> dict[str, Case]:
    """Value and gradient of a scalar, whose upstream is 1."""
    formula, exact = getattr(textbook, name), getattr(oracle, name)
    value = Case(draw, formula, exact, getattr(bounds, f"{name}_bound"), settings)
    slope = value._replace(
        exact=getattr(oracle, f"{name}_gradient"),
        bound=getattr(bounds, f"{name}_gradient_bound"),
        gradient=True,
    )
    return {name: value, f"{name}_gradient": slope}


def _log_softmax_bound(z: Tensor, tokens: Tensor) -> Tensor:
    exact = oracle.token_logprobs(z.numpy(), tokens.numpy())
    return bounds.log_softmax_bound(z, torch.from_numpy(exact))


def _stacked_gae_bound(*inputs: Any) -> Tensor:
    return torch.stack(bounds.gae_bound(*inputs))


LOGPROBS = Case(textbook.logits, textbook.token_logprobs, oracle.token_logprobs, _log_softmax_bound)
ENTROPY = Case(only_logits, textbook.entropy, oracle.entropy, bounds.entropy_bound)
CASES: dict[str, Case] = {
    "log_softmax": LOGPROBS,
    "log_softmax_gradient": LOGPROBS._replace(
        exact=oracle.token_logprobs_gradient,
        bound=bounds.log_softmax_gradient_bound,
        gradient=True,
        upstream=True,
    ),
    "entropy": ENTROPY,
    "entropy_gradient": ENTROPY._replace(
        draw=only_finite_logits,
        exact=oracle.entropy_gradient,
        bound=bounds.entropy_gradient_bound,
        gradient=True,
        upstream=True,
    ),
    **_kl("k1"),
    **_kl("k2"),
    **_kl("k3"),
    **_with_gradient("masked_mean", textbook.masked),
    "whiten": Case(textbook.masked, textbook.whiten, oracle.whiten, bounds.whiten_bound),
    "group_advantages": Case(
        textbook.groups,
        textbook.group_advantages,
        oracle.group_advantages,
        bounds.group_advantages_bound,
    ),
    "gae": Case(textbook.episodes, textbook.gae, oracle.gae, _stacked_gae_bound),
    **_with_gradient("policy_loss", textbook.policy_steps, (CLIP,)),
    **_with_gradient("value_loss", textbook.value_steps, (CLIP,)),
}
#: Exact in any format on inputs of that format: a copy, and differences of neighbours.
EXACT = ("k1_gradient",)


def cast(inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
    )


def computed(case: Case, inputs: tuple[Any, ...], upstream: Tensor | None) -> Tensor:
    """The formula in the dtype of the inputs, or its gradient at the first of them."""
    if not case.gradient:
        return case.formula(*inputs)
    leaf = inputs[0].clone().requires_grad_()
    value = case.formula(leaf, *inputs[1:])
    gradients: tuple[Tensor, ...] = torch.autograd.grad(value, leaf, upstream)
    return gradients[0]


def ratio(case: Case, inputs: tuple[Any, ...], dtype: torch.dtype = torch.float32) -> float:
    """Largest error over bound of the formula in ``dtype`` on these inputs."""
    upstream: Tensor | None = None
    extra: tuple[Any, ...] = case.settings
    if case.upstream:
        shape = case.formula(*inputs).shape
        upstream = torch.linspace(-1.0, 1.5, math.prod(shape)).bfloat16().float().view(shape)
        extra = (*case.settings, upstream)
    got = computed(case, cast(inputs, dtype), None if upstream is None else upstream.to(dtype))
    arrays = [x.numpy() if isinstance(x, Tensor) else x for x in (*inputs, *extra)]
    exact = torch.from_numpy(np.asarray(case.exact(*arrays), dtype=np.float64))
    return worst(got.double(), exact, torch.as_tensor(case.bound(*inputs, *extra)))


def worst(got: Tensor, exact: Tensor, bound: Tensor) -> float:
    """Largest error over bound; inf for NaN, and for an error where the bound is 0."""
    assert got.shape == exact.shape == bound.shape
    assert got.numel() > 0
    assert (bound >= 0).all()  # and no NaN
    error = torch.where(got == exact, torch.zeros_like(exact), (got - exact).abs())
    error = error.nan_to_num(nan=math.inf)
    quotient = torch.where(error == 0, torch.zeros_like(error), error / bound)
    return float(torch.where(bound.isinf(), torch.zeros_like(quotient), quotient).max())


def test_worst_counts_nan_lost_infinities_and_errors_of_exact_results() -> None:
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert worst(one, one + 0.5, one) == 0.5
    assert worst(-one / zero, -one / zero, zero) == 0
    for got, exact in ((one * math.nan, one), (-one / zero, one), (one, zero)):
        assert worst(got, exact, zero) == math.inf
    with pytest.raises(AssertionError):
        worst(zero[:0], zero[:0], zero[:0])


@pytest.mark.parametrize("name", list(CASES))
def test_sound_fp32_evaluation_keeps_the_bound_and_comes_near_it(name: str) -> None:
    case = CASES[name]
    ratios = [
        ratio(case, inputs)
        for seed in range(3)
        for inputs in case.draw(torch.Generator().manual_seed(seed))
    ]
    least = 0 if name in EXACT else 0.01
    assert least <= max(ratios) <= 1, f"largest error over bound {max(ratios)!r} of {len(ratios)}"


@pytest.mark.parametrize("name", [name for name in CASES if name not in EXACT])
def test_bf16_arithmetic_on_bf16_inputs_exceeds_the_bound(name: str) -> None:
    """The inputs lie on the bf16 grid, so that the arithmetic alone is at fault."""
    case = CASES[name]
    inputs = [
        cast(cast(x, torch.bfloat16), torch.float32)
        for x in case.draw(torch.Generator().manual_seed(0))
    ]
    assert max(ratio(case, x, torch.bfloat16) for x in inputs) > 10


def minus_logsumexp(z: Tensor, tokens: Tensor) -> Tensor:
    return z.gather(-1, tokens[..., None])[..., 0] - torch.logsumexp(z, -1)


def log_of_softmax(z: Tensor, tokens: Tensor) -> Tensor:
    return torch.softmax(z, -1).log().gather(-1, tokens[..., None])[..., 0]


def entropy_by_difference(z: Tensor) -> Tensor:
    """logsumexp - E[z], finite also for a -inf logit."""
    return torch.logsumexp(z, -1) - (torch.softmax(z, -1) * z.clamp(min=-1e30)).sum(-1)


def textbook_k3(policy: Tensor, ref: Tensor) -> Tensor:
    return torch.exp(ref - policy) - 1 + (policy - ref)


def one_pass(x: Tensor, mask: Tensor) -> Tensor:
    """Variance as E[x^2] - E[x]^2."""
    n, mean = mask.sum(), textbook.masked_mean(x, mask)
    variance = textbook.masked_mean(x * x, mask) - mean * mean
    return torch.where(mask, x - mean, 0) / (variance * n / (n - 1)).sqrt()


def biased(x: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation over n instead of n - 1."""
    n = mask.sum()
    return textbook.whiten(x, mask) * ((n / (n - 1)).sqrt() if n > 1 else 1)


def never_clipped(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    d = torch.where(mask, new - old, 0)
    return textbook.masked_mean(-d.exp() * advantages, mask)


WRONG: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "gather minus logsumexp": ("log_softmax", minus_logsumexp),
    "log of softmax": ("log_softmax", log_of_softmax),
    "entropy as a difference": ("entropy", entropy_by_difference),
    "textbook k3": ("k3", textbook_k3),
    "one-pass variance": ("whiten", one_pass),
    "biased deviation": ("whiten", biased),
    "unclipped surrogate": ("policy_loss", never_clipped),
    "unclipped gradient": ("policy_loss_gradient", never_clipped),
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_wrong_fp32_evaluation_exceeds_the_bound(mistake: str) -> None:
    name, formula = WRONG[mistake]
    case = CASES[name]._replace(formula=formula)
    assert max(ratio(case, x) for x in case.draw(torch.Generator().manual_seed(0))) > 10


def test_textbook_k3_exceeds_the_bound_nearly_everywhere_near_the_reference() -> None:
    """exp(-d) - 1 + d is wrong by about u, the bound is 9 u |d|."""
    d = torch.logspace(-4, -2, 500)
    exact = torch.from_numpy(oracle.kl_penalty(d.numpy(), np.zeros(500), "k3"))
    error = (textbook_k3(d, torch.zeros(500)).double() - exact).abs()
    exceeded = error > bounds.kl_bound(d, torch.zeros(500), "k3")
    assert exceeded.double().mean() > 0.8


def in_order(x: NDArray[np.float32], lanes: int) -> np.float32:
    """Sum in ``lanes`` running FP32 sums, which are added at the end."""
    return np.float32(np.cumsum(x.reshape(-1, lanes), 0, dtype=np.float32)[-1].sum())


@pytest.mark.parametrize("order", ["blocked", "16 lanes", "in order"])
def test_long_sum_keeps_the_bound_only_in_blocks(order: str) -> None:
    """150,000 equal terms that are no power of two: running sums drift, blocked ones do not."""
    vocabulary = 151_936
    z = torch.full((1, vocabulary), -0.3)
    z[0, 0] = 0.0
    weights, tokens = np.exp(z[0].numpy()), torch.tensor([0])
    lanes = {"16 lanes": 16, "in order": 1}
    total = in_order(weights, lanes[order]) if order in lanes else weights.sum()
    got = -torch.tensor([np.log(total)])
    exact = torch.from_numpy(oracle.token_logprobs(z.numpy(), tokens.numpy()))
    value = worst(got.double(), exact, bounds.log_softmax_bound(z, exact))
    assert (value <= 1) == (order == "blocked")
    mask = torch.ones(vocabulary, dtype=torch.bool)
    mean = torch.tensor(float(total) / vocabulary, dtype=torch.float64)
    x = torch.from_numpy(weights)
    exact = torch.tensor(oracle.masked_mean(weights, mask.numpy()), dtype=torch.float64)
    value = worst(mean, exact, bounds.masked_mean_bound(x, mask))
    assert (value <= 1) == (order == "blocked")
