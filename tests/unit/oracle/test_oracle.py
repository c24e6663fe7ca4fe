"""The oracle against the definitions, evaluated in mpmath with 120 digits.

The definitions here are the plain ones, cancellation and all: 120 digits pay for it. Gradients are
central differences with a step of 1e-40, good to 1e-80, which share nothing with a formula for the
derivative. The oracle's own error must stay below a thousandth of the FP32 bound.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from numpy.typing import NDArray

from precision_lib import bounds, oracle

Array = NDArray[np.float64]
#: What the oracle may use of an FP32 bound, so that the bound is the whole limit in practice.
SHARE = 1e-3
CLIP = 0.2
#: Relative error of some twenty float64 operations.
ROUNDINGS = 20 * 2.0**-53


@pytest.fixture(autouse=True)
def many_digits() -> Iterator[None]:
    with mpmath.workdps(120):
        yield


def tensors(*arrays: Any) -> list[Any]:
    return [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arrays]


def check(got: Any, want: Any, bound: Any) -> None:
    """Within the share of the bound, and float64's smallest number; infinities match."""
    got, bound = np.asarray(got, dtype=np.float64), np.asarray(bound)
    wide = np.asarray(want, dtype=object)
    assert got.shape == wide.shape
    assert got.size > 0
    for index in np.ndindex(got.shape):
        limit = SHARE * float(bound[index]) + 5e-324
        if mpmath.isinf(wide[index]) or got[index] == wide[index]:
            assert got[index] == wide[index]
        else:
            error = abs(mpf(float(got[index])) - wide[index])
            assert error <= limit, f"{index}: got {got[index]}, want {wide[index]}, limit {limit}"


def derivative(f: Callable[..., Any], x: Array, *, at: tuple[int, ...]) -> Any:
    """d f(x) / d x[at] by a central difference of an mpmath function of an object array."""
    step, wide = mpf(10) ** -40, exactly(x)
    values = []
    for sign in (1, -1):
        moved = wide.copy()
        moved[at] += sign * step
        values.append(f(moved))
    return (values[0] - values[1]) / (2 * step)


def exactly(x: Array) -> NDArray[np.object_]:
    return np.array([mpf(float(v)) for v in x.ravel()], dtype=object).reshape(x.shape)


def gradient(f: Callable[..., Any], x: Array) -> NDArray[np.object_]:
    """Of a scalar function, at the finite entries; 0 at the others (masked, or -inf logits)."""
    result = np.full(x.shape, mpf(0), dtype=object)
    for at in np.ndindex(x.shape):
        if np.isfinite(x[at]):
            result[at] = derivative(f, x, at=at)
    return result


def rows_of_logits() -> Iterator[tuple[Array, int]]:
    """Random, offset, confident, with -inf, and a token whose probability underflows."""
    rng = np.random.default_rng(0)
    for vocabulary in (2, 7):
        for offset in (0.0, 1e4):
            for spread in (1e-3, 1.0, 30.0):
                z = rng.normal(size=vocabulary) * spread + offset
                z = z.astype(np.float32).astype(np.float64)
                confident, impossible, far = z.copy(), z.copy(), z.copy()
                confident[0] = z.max() + 60
                impossible[-1], far[-1] = -math.inf, z.max() - 800
                for row in (z, confident, impossible, far):
                    yield row, 0
                    yield row, vocabulary - 1


def log_softmax(z: NDArray[np.object_], token: int) -> Any:
    return z[token] - mpmath.log(mpmath.fsum(mpmath.exp(v) for v in z))


def shannon(z: NDArray[np.object_]) -> Any:
    logs = [log_softmax(z, v) for v in range(len(z)) if z[v] != -math.inf]
    return -mpmath.fsum(mpmath.exp(x) * x for x in logs)


def test_token_logprobs_and_their_gradient() -> None:
    for z, token in rows_of_logits():
        want = np.array([log_softmax(exactly(z), token)])
        tokens, up = np.array([token]), np.array([-1.7])
        finite = np.array([0.0 if z[token] == -math.inf else float(want[0])])
        bound = bounds.log_softmax_bound(*tensors(z[None], finite))
        check(oracle.token_logprobs(z[None], tokens), want, bound)
        exact = float(want[0])  # both work with 100 digits or more, next to 1
        got = oracle.token_logprob(z.tolist(), token)
        assert got == pytest.approx(exact, rel=2.0**-53, abs=10.0**-98)
        if z[token] != -math.inf:
            slope = gradient(lambda x, t=token: log_softmax(x, t), z)
            limit = bounds.log_softmax_gradient_bound(*tensors(z[None], tokens, up))
            check(oracle.token_logprobs_gradient(z[None], tokens, up)[0], -1.7 * slope, limit[0])


def test_entropy_and_its_gradient() -> None:
    for z, _ in rows_of_logits():
        up = np.array([0.3])
        want = np.array([shannon(exactly(z))])
        check(oracle.entropy(z[None]), want, bounds.entropy_bound(*tensors(z[None])))
        slope = float(up[0]) * gradient(shannon, z)
        limit = bounds.entropy_gradient_bound(*tensors(z[None], up))
        check(oracle.entropy_gradient(z[None], up)[0], slope, limit[0])


def test_confident_distribution_keeps_its_small_numbers() -> None:
    """p = 1 - 1e-26: log-prob, 1 - p and entropy with a small relative error."""
    z = np.array([[60.0, 0.0]])
    tokens, one = np.array([0]), np.ones(1)
    small = float(mpmath.exp(-60))
    assert oracle.token_logprobs(z, tokens)[0] == pytest.approx(-small, rel=ROUNDINGS, abs=0)
    gradient_there = oracle.token_logprobs_gradient(z, tokens, one)[0]
    assert gradient_there == pytest.approx([small, -small], rel=ROUNDINGS, abs=0)
    assert oracle.entropy(z)[0] == pytest.approx(61 * small, rel=ROUNDINGS, abs=0)


def test_large_vocabulary_agrees_with_mpmath() -> None:
    z = np.random.default_rng(1).normal(size=(1, 3000)) * 5
    for token in (0, int(z.argmax())):
        fast = oracle.token_logprobs(z, np.array([token]))[0]
        assert fast == pytest.approx(oracle.token_logprob(z[0].tolist(), token), rel=ROUNDINGS)


ESTIMATORS: dict[str, Callable[[Any], Any]] = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: mpmath.exp(-d) - 1 + d,
}


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_kl_penalty_and_its_gradient(estimator: str) -> None:
    size = 10.0 ** np.arange(-12, 3)
    ref = np.full(2 * len(size), -3.0)
    policy = ref + np.concatenate([size, -size[:-1], [0.0]])
    f, difference = ESTIMATORS[estimator], exactly(policy) - exactly(ref)
    got = oracle.kl_penalty(policy, ref, estimator)
    bound = bounds.kl_bound(*tensors(policy, ref, estimator))
    check(got, np.array([f(d) for d in difference]), bound)
    up = np.linspace(-1, 2, len(ref))
    slope = [u * mpmath.diff(f, d) for u, d in zip(exactly(up), difference, strict=True)]
    limit = bounds.kl_gradient_bound(*tensors(policy, ref, estimator, up))
    got = oracle.kl_penalty_gradient(policy, ref, estimator, up)
    check(got, np.array(slope), limit + 1e-16)  # k1 is exact, mpmath's own derivative is not


@pytest.mark.parametrize("sign", [-1, 1])
def test_k3_is_correctly_rounded(sign: int) -> None:
    """Against 400 digits, across the border of the series and down to float64's subnormals."""
    exponents = [*range(-150, 3), *np.linspace(-6.1, -5.9, 41)]
    for exponent in exponents:
        d = sign * 10.0**exponent
        with mpmath.workdps(400):
            want = float(mpmath.exp(-mpf(d)) - 1 + mpf(d))
        assert oracle.k3(d) == want, d.hex()


def test_k3_has_its_limits_at_infinity() -> None:
    assert [oracle.k3(d) for d in (-1e5, -math.inf, math.inf, 0.0)] == [math.inf] * 3 + [0.0]
    assert math.isnan(oracle.k3(math.nan))
    with pytest.raises(ValueError, match="unknown KL estimator 'k4'; use"):
        oracle.kl_penalty(np.zeros(1), np.zeros(1), "k4")
    with pytest.raises(ValueError, match="unknown KL estimator 'k4'; use"):
        oracle.kl_penalty_gradient(np.zeros(1), np.zeros(1), "k4", np.zeros(1))
    slope = oracle.kl_penalty_gradient(np.full(2, -1e5), np.zeros(2), "k3", np.arange(2.0))
    assert slope.tolist() == [0.0, -math.inf]


def padded(seed: int, length: int, mean: float = 0.0) -> tuple[Array, NDArray[np.bool_]]:
    """([3, length], mask) on the FP32 grid, NaN and inf in masked slots, one row empty."""
    x = np.random.default_rng(seed).normal(size=(3, length)) + mean
    mask = np.arange(length) < np.array([[length], [(length + 1) // 2], [0]])
    x = np.where(mask, x.astype(np.float32), math.nan)
    x[2] = math.inf
    return x, mask


def mean_of(values: list[Any]) -> Any:
    return mpmath.fsum(values) / len(values)


def standardised(values: list[Any]) -> list[Any]:
    mean = mean_of(values)
    variance = mpmath.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return [(v - mean) / mpmath.sqrt(variance) for v in values]


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("length", [2, 20])
def test_masked_mean_and_whitening(length: int, mean: float) -> None:
    x, mask = padded(0, length, mean)
    values = list(exactly(x[mask]))
    want = mean_of(values)
    check(oracle.masked_mean(x, mask), want, bounds.masked_mean_bound(*tensors(x, mask)))
    slope = np.where(mask, mpf(1) / len(values), mpf(0))
    limit = bounds.masked_mean_gradient_bound(*tensors(x, mask))
    check(oracle.masked_mean_gradient(x, mask), slope, limit)
    white = np.full(x.shape, mpf(0), dtype=object)
    white[mask] = standardised(values)
    check(oracle.whiten(x, mask), white, bounds.whiten_bound(*tensors(x, mask)))
    rewards = x[:1] * np.array([[1.0], [1e-3]])
    want = np.array([standardised(list(row)) for row in exactly(rewards)])
    limit = bounds.group_advantages_bound(*tensors(rewards))
    check(oracle.group_advantages(rewards), want, limit)


@pytest.mark.parametrize("value", [0.1, 1e30, -1e-30, 12345.678])
def test_constants_single_tokens_and_empty_masks_give_exact_zeros(value: float) -> None:
    x, everything = np.full((2, 37), value), np.ones((2, 37), dtype=bool)
    assert not oracle.whiten(x, everything).any()
    assert not oracle.group_advantages(x).any()
    single, nothing = everything.copy(), np.zeros_like(everything)
    single[:] = False
    single[1, 3] = True
    assert not oracle.whiten(x, single).any()
    assert not oracle.whiten(x, nothing).any()
    assert oracle.masked_mean(x, nothing) == 0
    assert not oracle.masked_mean_gradient(x, nothing).any()


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
def test_gae_is_the_discounted_sum_of_its_definition(gamma: float, lam: float) -> None:
    rewards, mask = padded(1, 20)
    values, _ = padded(2, 20, 5.0)
    want = np.full((2, *mask.shape), mpf(0), dtype=object)
    for b, n in enumerate(mask.sum(1)):
        r, v = exactly(rewards[b, :n]), [*exactly(values[b, :n]), mpf(0)]
        delta = [r[t] + mpf(gamma) * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            weights = [(mpf(gamma) * mpf(lam)) ** j for j in range(n - t)]
            want[0, b, t] = mpmath.fsum(w * x for w, x in zip(weights, delta[t:], strict=True))
            want[1, b, t] = want[0, b, t] + v[t]
    inputs = (rewards, values, mask, gamma, lam)
    for got, exact, bound in zip(
        oracle.gae(*inputs), want, bounds.gae_bound(*tensors(*inputs)), strict=True
    ):
        check(got, exact, bound)


def gae_and_bounds(r: Any, v: Any, mask: Any, last: Any) -> Any:
    """Advantages, returns and their bounds, [4, B, T]."""
    given = [torch.from_numpy(np.ascontiguousarray(x)) for x in (r, v, mask, last)]
    limits = bounds.gae_bound(given[0], given[1], given[2], 0.9, 0.8, bootstrap=given[3])
    return np.stack([*oracle.gae(r, v, mask, 0.9, 0.8, last), *limits])


def test_gae_and_its_bound_skip_holes() -> None:
    """What the real tokens give in front of the padding; the holes hold 0, whatever is in them."""
    generator = np.random.default_rng(0)
    mask = generator.random((5, 12)) < 0.6
    r, v = (np.where(mask, generator.normal(size=mask.shape), np.nan) for _ in range(2))
    last = generator.normal(size=5)
    order = np.argsort(~mask, axis=1, kind="stable")
    want = np.zeros((4, *mask.shape))
    rewards, values, real = (np.take_along_axis(x, order, 1) for x in (r, v, mask))
    np.put_along_axis(want, order[None], gae_and_bounds(rewards, values, real, last), 2)
    assert np.array_equal(gae_and_bounds(r, v, mask, last), want)
    assert want[2:, mask].min() > 0
    assert not want[:, ~mask].any()


def clipped_policy(new: Any, old: Any, advantages: Any, c: Any) -> Any:
    terms = []
    for x, o, a in zip(new, old, advantages, strict=True):
        r = mpmath.exp(x - o)
        terms.append(-min(r * a, min(max(r, 1 - c), 1 + c) * a))
    return mean_of(terms)


def clipped_value(values: Any, old: Any, returns: Any, c: Any) -> Any:
    terms = []
    for v, o, target in zip(values, old, returns, strict=True):
        limited = min(max(v, o - c), o + c)
        terms.append(max((v - target) ** 2, (limited - target) ** 2) / 2)
    return mean_of(terms)


@pytest.mark.parametrize("name", ["policy_loss", "value_loss"])
@pytest.mark.parametrize("step", [0.01, 0.3, 5.0])
def test_losses_and_their_gradients(name: str, step: float) -> None:
    """Steps inside the clip range, across its limits, and far outside."""
    definition = {"policy_loss": clipped_policy, "value_loss": clipped_value}[name]
    old, mask = padded(3, 20, -2.0)
    first = old + step * padded(4, 20)[0]
    third, _ = padded(5, 20, -1.0)
    wide = [exactly(x[mask]) for x in (first, old, third)]

    def f(x: Any) -> Any:
        return definition(x, wide[1], wide[2], mpf(CLIP))

    inputs = (first, old, third, mask, CLIP)
    bound = getattr(bounds, f"{name}_bound")(*tensors(*inputs))
    check(getattr(oracle, name)(*inputs), f(wide[0]), bound)
    slope = np.full(mask.shape, mpf(0), dtype=object)
    slope[mask] = gradient(f, first[mask])
    limit = getattr(bounds, f"{name}_gradient_bound")(*tensors(*inputs))
    check(getattr(oracle, f"{name}_gradient")(*inputs), slope, limit)


def test_losses_have_their_limits_where_the_ratio_overflows() -> None:
    """0 times inf is 0, a positive advantage is clipped, a negative one has no limit."""
    far, old, mask = np.array([[1e4]]), np.zeros((1, 1)), np.ones((1, 1), dtype=bool)
    wants = {0.0: (0.0, 0.0), 2.0: (-2.0 * (1 + CLIP), 0.0), -2.0: (math.inf, math.inf)}
    for advantage, (loss, slope) in wants.items():
        a = np.full((1, 1), advantage)
        assert oracle.policy_loss(far, old, a, mask, CLIP) == loss
        assert oracle.policy_loss_gradient(far, old, a, mask, CLIP).item() == slope
    huge = np.full((1, 3), 709.0)
    a, mask = np.full((1, 3), -1.0), np.ones((1, 3), dtype=bool)
    assert oracle.policy_loss(huge, 0 * huge, a, mask, CLIP) == math.inf


def test_masked_slots_and_empty_masks_of_the_losses() -> None:
    x, mask = padded(6, 4)
    nothing = np.zeros_like(mask)
    for name in ("policy_loss", "value_loss"):
        assert getattr(oracle, name)(x, x, x, nothing, CLIP) == 0
        assert not getattr(oracle, f"{name}_gradient")(x, x, x, nothing, CLIP).any()
        assert math.isfinite(getattr(oracle, name)(x, x, x, mask, CLIP))
        assert not getattr(oracle, f"{name}_gradient")(x, x, x, mask, CLIP)[~mask].any()
