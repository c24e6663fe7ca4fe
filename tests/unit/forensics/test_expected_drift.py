"""The drift that two models' distributions imply, against drawn tokens and against enumeration."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings

from precision_lib.forensics.h4 import expected_drift as expected

U = 2.0**-53
#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)


def drift_on(golden: torch.Tensor, executed: torch.Tensor, tokens: torch.Tensor) -> Any:
    found = expected.pair_drift(executed, golden, tokens)
    return expected.ExpectedDrift(**{name: x.numpy() for name, x in found.items()})


@SETTINGS
@given(seed=seeds, log2_noise=st.integers(-12, 2))
def test_expected_drift_is_what_enumerating_the_tokens_gives(seed: int, log2_noise: int) -> None:
    """Sum over the vocabulary of probability times error; V terms, each rounded a few times."""
    generator = torch.Generator().manual_seed(seed)
    golden = torch.randn(1, 1, 20, generator=generator, dtype=torch.float64) * 3
    noise = torch.randn(1, 1, 20, generator=generator, dtype=torch.float64) * 2.0**log2_noise
    executed, tokens = golden + noise, torch.arange(20)[None]
    drift = drift_on(golden.expand(1, 20, 20), executed.expand(1, 20, 20), tokens)
    q, p = (x.softmax(-1).flatten().numpy() for x in (golden, executed))
    largest = np.abs(drift.error).max() + float(golden.abs().max()) * 2
    limit = 4 * 20 * U * (largest + largest**2)
    assert abs((q * drift.error).sum() + drift.golden_kl[0, 0]) <= limit
    assert abs((p * drift.error).sum() - drift.executed_kl[0, 0]) <= limit
    second = (q * (drift.error + drift.golden_kl[0, 0]) ** 2).sum()
    assert abs(second - drift.variance[0, 0]) <= limit
    assert abs((q * drift.surprise).sum()) <= limit
    assert min(drift.golden_kl.min(), drift.executed_kl.min()) >= -limit


def noisy_models(count: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(5)
    golden = torch.randn(8, count, 32, generator=generator, dtype=torch.float64) * 2
    eta = torch.randn(8, count, 32, generator=generator, dtype=torch.float64) * noise
    return golden, golden + eta, generator


def draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    flat = logits.softmax(-1).view(-1, logits.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).view(logits.shape[:2])


def test_drift_of_drawn_tokens_is_minus_kl_and_of_the_executed_models_own_plus_kl() -> None:
    golden, executed, generator = noisy_models(2000, 0.3)
    drift = drift_on(golden, executed, draw(golden, generator))
    assert abs(expected.drift_z(drift)) < SIGMAS
    assert abs(expected.source_z(drift)) < SIGMAS
    assert drift.error.sum() / math.sqrt(drift.variance.sum()) < -SIGMAS
    own = drift_on(golden, executed, draw(executed, generator))
    z = (own.error - own.executed_kl).sum() / math.sqrt(own.variance.sum())
    assert abs(z) < SIGMAS
    assert expected.drift_z(own) > SIGMAS


def test_tokens_that_neither_model_drew_drift_by_the_normaliser_all_the_same() -> None:
    """Noise that knows nothing of the token: -Var_mu(eta)/2 per token wherever it comes from.

    The opposite, a random walk without a drift, is what is said of such tokens; it is off by more
    than 4.5 standard errors of the error's own variance.
    """
    golden, executed, generator = noisy_models(4000, 0.3)
    anything = torch.randint(32, golden.shape[:2], generator=generator)
    drift = drift_on(golden, executed, anything)
    scatter = math.sqrt(drift.error.var() * drift.error.size)
    assert abs((drift.error + drift.golden_kl).sum()) < SIGMAS * scatter
    assert drift.error.sum() < -SIGMAS * scatter
    report = expected.summary(drift, seed=0)
    share = report["seen_as_share_of_expected"]
    assert share.low < 1 < share.high
    assert share.low > 0


def test_tokens_shifted_by_one_are_not_the_models_own() -> None:
    golden, executed, generator = noisy_models(500, 0.1)
    tokens = draw(golden, generator)
    assert abs(expected.source_z(drift_on(golden, executed, tokens))) < SIGMAS
    assert abs(expected.source_z(drift_on(golden, executed, tokens.roll(1, 1)))) > SIGMAS


def test_the_random_walk_check_sees_too_little_and_too_much_scatter() -> None:
    """The clean case, sums without any scatter, and twice the variance, over 4 x 2,048 tokens."""
    generator = np.random.default_rng(0)
    kl = np.full((4, 2048), 4e-4)
    noise = generator.standard_normal(kl.shape) * np.sqrt(2 * kl)

    def drift(error: Any) -> expected.ExpectedDrift:
        return expected.ExpectedDrift(error, kl, kl, 2 * kl, np.zeros_like(kl), np.ones_like(kl))

    assert abs(expected.random_walk_z(drift(noise - kl))) < SIGMAS
    assert expected.random_walk_z(drift(-kl)) < -SIGMAS
    assert expected.random_walk_z(drift(math.sqrt(2) * noise - kl)) > SIGMAS
