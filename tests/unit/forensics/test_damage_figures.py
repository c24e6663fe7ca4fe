"""Cosines and norms of two gradients that are known, and their intervals."""

import numpy as np
import pytest

from precision_lib.forensics.damage.figures import (
    Products,
    cosine_metric,
    expected_cosine,
    norm_metric,
    products,
)
from precision_lib.forensics.statistics import NothingComparedError


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 0.1, 1.0, 2.0, 3.0])
def test_an_angle_that_is_known(angle: float) -> None:
    """Two sequences whose terms add up to vectors at an angle, of norms 1 and 2."""
    rest = np.array([0.3, -0.2, 0.5])
    want, got = np.array([1.0, 0.0, 0.0]), 2 * np.array([np.cos(angle), np.sin(angle), 0.0])
    given = products(np.stack([got - rest, rest]), np.stack([want - rest, rest]))
    assert given.lost() == pytest.approx(2 * np.sin(angle / 2) ** 2, rel=1e-6, abs=1e-15)
    assert given.norm_ratio() == pytest.approx(2, rel=1e-12)


def test_the_interval_covers_a_cosine_that_is_known() -> None:
    """Independent noise of a hundredth of the signal's power on 16 sequences: 95 of 100 times."""
    generator, inside = np.random.default_rng(0), 0
    for _ in range(200):
        truth = generator.normal(size=(16, 400)) + 1
        metric = cosine_metric(products(truth + 0.1 * generator.normal(size=truth.shape), truth), 1)
        # Signal 16 (1 + 16) and noise 16 / 100 for each coordinate.
        inside += metric.low <= 1 / np.sqrt(1 + 0.01 / 17) <= metric.high
    assert inside >= 180  # 95 % less 3 standard errors


def test_equal_gradients_have_a_cosine_of_one_and_none_is_refused() -> None:
    truth = np.random.default_rng(0).normal(size=(4, 9))
    same = products(truth, truth)
    for metric in (cosine_metric(same, 7), norm_metric(same, 7)):
        assert (metric.value, metric.low, metric.high, metric.n) == (1, 1, 1, 7)
    assert products(0 * truth, truth).lost() == 1
    alone = np.zeros_like(truth)
    alone[0] = truth[0]  # without it there is nothing to divide by
    for nothing in (0 * truth, truth[:1], alone):
        with pytest.raises(NothingComparedError, match="sequences give a gradient to compare"):
            products(nothing, nothing)


def test_leaving_a_sequence_out_is_the_product_without_it() -> None:
    generator = np.random.default_rng(1)
    got, want = generator.normal(size=(2, 5, 9))
    left = products(got, want).without(2)
    rest = [0, 1, 3, 4]
    assert isinstance(left, Products)
    assert left.lost() == pytest.approx(products(got[rest], want[rest]).lost(), rel=1e-12)


def test_independent_errors_of_advantages_and_log_probs_give_the_expected_cosine() -> None:
    assert expected_cosine(0.3, 0.4) == pytest.approx(1 / np.sqrt(1.25))
    generator = np.random.default_rng(2)
    slopes, advantages = generator.normal(size=(2000, 300)), generator.normal(size=(2000, 1))
    errors = 1 + 0.1 * generator.normal(size=advantages.shape) / np.abs(advantages)
    got, want = advantages * errors * slopes, advantages * slopes
    limit = 1 - expected_cosine(0.0, 0.1)
    assert products(got, want).lost() == pytest.approx(limit, rel=0.2)
