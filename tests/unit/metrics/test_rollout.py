"""H5's sums and laws on differences that were made up, and faults that each must see."""

import math
from typing import Any

import numpy as np
import pytest

from precision_lib.forensics.h5.declaration import H5
from precision_lib.metrics import rollout as h5
from precision_lib.metrics.measure import Array

SIGMAS = 4.5


def _metric(name: str, difference: Array) -> float:
    return H5.metrics[name].of(h5.sequence_sums(difference))


def _noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def test_metrics_of_two_sequences_by_hand() -> None:
    """Sums 0.4 and 0; ratios e^0.3, e^0.1, e^-0.3, e^0.3: three of four leave 1 +- 0.2."""
    d = np.array([[0.3, 0.1], [-0.3, 0.3]])
    assert _metric("rollout_log_ratio_final", d) == pytest.approx(math.sqrt(0.16 / 2))
    assert _metric("rollout_logprob_abs_diff_mean", d) == pytest.approx(0.25)
    assert _metric("rollout_token_outside_clip_frac", d) == 0.75
    wanted = sum(math.exp(x) - 1 - x for x in d.ravel()) / 4
    assert _metric("rollout_k3", d) == pytest.approx(wanted)
    weights = math.exp(0.4), 1.0
    assert _metric("rollout_sequence_ess", d) == pytest.approx(
        sum(weights) ** 2 / 2 / sum(w**2 for w in weights)
    )


def test_equal_engines_have_no_mismatch_and_an_overflow_is_counted() -> None:
    zero = np.zeros((3, 4))
    for name in H5.metrics:
        assert _metric(name, zero) == (1.0 if name == "rollout_sequence_ess" else 0.0)
    broken = zero.copy()
    broken[0, 1], broken[2, 3] = np.inf, np.nan
    assert _metric("rollout_nonfinite_frac", broken) == 2 / 12
    assert _metric("rollout_log_ratio_final", broken) == 0.0
    with pytest.raises(ValueError, match="at least one token"):
        h5.sequence_sums(np.zeros((3, 0)))


def test_quadrature_is_seen_to_hold_and_to_fail() -> None:
    trainer, rollout = _noise(24, 100), _noise(24, 100, seed=1)
    assert abs(h5.quadrature_z(trainer, rollout)) < SIGMAS
    shared = 0.3 * trainer + rollout
    assert h5.quadrature_z(trainer, shared) > SIGMAS
    assert h5.quadrature_z(trainer, -shared) < -SIGMAS


def _policy(seed: int = 2) -> tuple[Array, Any, Array]:
    """(p [N, T, V], chosen tokens, their log-probs): peaked and flat contexts."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((24, 100, 50)) * generator.uniform(0.5, 8, (24, 100, 1))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = (p.cumsum(-1) > generator.random((24, 100, 1))).argmax(-1)
    return p, chosen, np.log(np.take_along_axis(p, chosen[..., None], -1)[..., 0])


def _difference(p: Array, chosen: Any, seed: int = 3) -> Array:
    """d of independent logit errors, to first order."""
    eta = 0.01 * _noise(*p.shape, seed=seed)
    own: Array = np.take_along_axis(eta, chosen[..., None], -1)[..., 0]
    difference: Array = own - (p * eta).sum(-1)
    return difference


def test_probability_law_holds_for_independent_logit_errors() -> None:
    p, chosen, logprobs = _policy()
    d, weight = _difference(p, chosen), h5.weight_of(logprobs, (p**2).sum(-1))
    assert abs(h5.probability_z(d, logprobs, weight)) < SIGMAS
    flat = h5.probability_z(d, logprobs, np.ones_like(d))
    assert flat > SIGMAS, "improbable tokens are noisier, which a constant does not say"
    bins = h5.by_probability(d, logprobs, (p**2).sum(-1))
    assert sum(b.n for b in bins) == d.size
    assert bins[0].rms > bins[-1].rms


def test_temperature_law_holds_and_a_forgotten_temperature_is_seen() -> None:
    p, chosen, logprobs = _policy()
    weight = h5.weight_of(logprobs, (p**2).sum(-1))
    cool = p**2 / (p**2).sum(-1, keepdims=True)  # temperature 1/2
    cool_logprobs = np.log(np.take_along_axis(cool, chosen[..., None], -1)[..., 0])
    cool_weight = h5.weight_of(cool_logprobs, (cool**2).sum(-1))
    usual, cooler = _difference(p, chosen), _difference(cool, chosen) / 0.5
    assert abs(h5.temperature_z(usual, weight, cooler, cool_weight, 0.5)) < SIGMAS
    assert h5.temperature_z(usual, weight, cooler / 2, cool_weight, 0.5) > SIGMAS


def test_length_law_holds_and_errors_of_one_sign_are_seen() -> None:
    d = _noise(24, 300)
    assert abs(h5.length_z(d)) < SIGMAS
    assert abs(h5.length_z(d + 5.0)) < SIGMAS, "a common drift is no scatter"
    assert h5.length_z(d + _noise(24, 1, seed=5)) > SIGMAS
    assert h5.length_z(np.zeros((4, 8))) == 0.0
