"""H5, rollout mismatch: are two engines' log-probs far enough apart to act as off-policy noise?

d = trainer's log-prob minus the rollout's, of the same token. S_t is the sum of d up to token t, T
the length of the response. A policy-gradient method that takes the rollout's tokens as its own is
off by the factor exp(d) per token and exp(S_T) per sequence, before anything was learned.

===============================  ==============================================================
metric                           on N sequences of T tokens
===============================  ==============================================================
rollout_log_ratio_final          RMS over sequences of S_T, nats: the damage, and what decides
rollout_logprob_abs_diff_mean    mean |d|, nats: what frameworks log, the symptom
rollout_token_outside_clip_frac  share of tokens whose ratio exp(d) leaves 1 +- 0.2
rollout_k3                       mean of exp(d) - 1 - d, nats
rollout_sequence_ess             (mean w)^2 / mean w^2 of w = exp(S_T)
rollout_nonfinite_frac           share of d that is inf or NaN; they enter nothing else, and a
                                 cell that has any is impaired
===============================  ==============================================================

Laws, written down before they were measured. An engine adds an error eta to each logit, of mean
zero and nearly independent. Then d = eta_x - sum_v p_v eta_v, and

1. *quadrature*: the errors e of trainer and rollout against the FP32 policy are independent where
   their weights are rounded to other grids, so mean d^2 = mean e_T^2 + mean e_R^2. Two engines in
   one format share the rounding of the weights, so there the errors are correlated and d is less;
2. *probability*: std(d | p) = sigma (1 - p), since the token's own eta enters with 1 - p. With
   the share of the other tokens it is sigma sqrt((1 - p)^2 + sum_{v != x} p_v^2), up to sqrt(2)
   more where p is near 1;
3. *temperature*: at temperature tau logits are divided by it, so sigma becomes sigma / tau, with
   the p_v of that temperature;
4. *length*: the errors of two tokens are uncorrelated, so RMS(S_t) grows as the square root of t.

Measured: 1 and 4 hold within 4.5 standard errors. Laws 2 and 3 are approximations. With the second
form of 2, tau sigma(tau) is 1 to 2 % above sigma(1), by 1 to 4.6 standard errors over five seeds.
Sigma of tokens with p > 1/2 is 1.1 to 1.3 times that of the others. About half of this comes from
the rounding of logits, which are larger where the model is certain. So their standard errors are
recorded, and both laws only have to say more than a constant does. An engine whose errors have a
mean (fp8: the KL per token) drifts, so d enters law 4 less its mean.

N sequences, T tokens each; sums are name to [N] per sequence.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precision_lib.metrics import drift
from precision_lib.metrics.direction import EXACT, RATIO, SHARE, not_gated
from precision_lib.metrics.measure import Array, Measure, root_mean_square, share

#: PPO's usual clip range: a token whose ratio is outside has no gradient on one side.
CLIP_RANGE = 0.2
#: exp of more leaves the square of a float64 far from overflow.
_LARGEST = 300.0
#: Sums that hold for sequences of any length, so that those of several batches can be put together.
_PER_SEQUENCE = (
    *("sequences", "tokens", "nonfinite", "error", "final2"),
    *("absolute", "k3", "outside"),
)
#: Upper ends of the bins of a token's probability.
PROBABILITY_BINS = (1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99, 1.0)


#: Metric to how it is made of the sums: H5's in the main job, in a replay and in training.
MEASURES = {
    "rollout_log_ratio_final": Measure(root_mean_square("final2", "sequences"), "nats RMS", RATIO),
    "rollout_logprob_abs_diff_mean": Measure(share("absolute"), "nats", RATIO),
    "rollout_token_outside_clip_frac": Measure(share("outside"), "share of tokens", SHARE),
    "rollout_k3": Measure(share("k3"), "nats", RATIO),
    "rollout_sequence_ess": Measure(
        lambda t: t["weight"] ** 2 / (t["sequences"] * t["weight2"]),
        "share of sequences",
        not_gated(
            "of so few sequences that its limit lies below what it can reach; it is made of "
            "rollout_log_ratio_final"
        ),
    ),
    "rollout_nonfinite_frac": Measure(share("nonfinite"), "share of tokens", EXACT),
}


def figures(sums: Mapping[str, Array]) -> dict[str, float]:
    """Every metric of :data:`MEASURES` over all sequences of ``sums``; no intervals."""
    return {name: measure.of(sums) for name, measure in MEASURES.items()}


def padded_sums(difference: Array, real: NDArray[np.bool_]) -> dict[str, Array]:
    """:func:`sequence_sums` of responses of several lengths.

    Args:
        difference: [N, T] d, nats; anything where there is no token.
        real: [N, T], True for a response token; real ones come first.

    Returns:
        Name to [N], of real tokens alone; a sum of the whole response is its last one.

    Raises:
        ValueError: no real token: nothing would be compared. Also as :func:`sequence_sums`.
    """
    if not real.any():
        raise ValueError("there is no response token, so nothing would be compared")
    sums = sequence_sums(np.where(real, difference, 0.0))
    return sums | {"tokens": real.sum(1).astype(np.float64)}


def joined_sums(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Sums of several batches as those of one: what :data:`MEASURES` need.

    The weights of a batch are relative to its own largest, so they are taken anew over all.
    """
    sums = {name: np.concatenate([part[name] for part in parts]) for name in _PER_SEQUENCE}
    weight = drift.relative_weights(sums["error"])
    return sums | {"weight": weight, "weight2": weight**2}


def sequence_sums(difference: Array) -> dict[str, Array]:
    """Everything that the metrics need, per sequence.

    Args:
        difference: [N, T] d, nats; inf or NaN where a log-prob is.

    Returns:
        Name to [N]: those of :func:`drift.sequence_sums`, and of |d|, of k3 and of the clip band.

    Raises:
        ValueError: for an array that is not [N, T] with at least one token.
    """
    sums = drift.sequence_sums(difference)
    log_ratio = _finite(difference)
    ratio_less_one = np.expm1(np.minimum(log_ratio, _LARGEST))
    return sums | {
        "absolute": np.abs(log_ratio).sum(1),
        "k3": (ratio_less_one - log_ratio).sum(1),
        "outside": (np.abs(ratio_less_one) > CLIP_RANGE).sum(1).astype(np.float64),
    }


def weight_of(logprobs: Array, collision: Array) -> Array:
    """Variance of d over sigma^2 by law 2: (1 - p)^2 + sum_{v != x} p_v^2.

    Args:
        logprobs: [N, T] of the token. collision: [N, T], sum of all p_v^2.
    """
    p = np.exp(logprobs)
    return np.asarray((1 - p) ** 2 + np.maximum(collision - p**2, 0.0))


@dataclass(frozen=True)
class ProbabilityBin:
    """Tokens whose probability is in (``above``, ``up_to``]: mean and RMS of d, sigma of law 2.

    ``sigma_first_order`` is that of the form sigma (1 - p).
    """

    above: float
    up_to: float
    n: int
    mean: float
    rms: float
    sigma: float
    sigma_first_order: float


def by_probability(
    difference: Array, logprobs: Array, collision: Array
) -> tuple[ProbabilityBin, ...]:
    """The bins of the token's probability that hold a token."""
    log_ratio, p = _finite(difference), np.exp(logprobs)
    weight, first_order = weight_of(logprobs, collision), (1 - p) ** 2
    rows, low = [], 0.0
    for high in PROBABILITY_BINS:
        inside = (p > low) & (p <= high)
        if inside.any():
            d = log_ratio[inside]
            rows.append(
                ProbabilityBin(
                    above=low,
                    up_to=high,
                    n=int(inside.sum()),
                    mean=float(d.mean()),
                    rms=float(np.sqrt((d**2).mean())),
                    sigma=_rms_over(d, weight[inside]),
                    sigma_first_order=_rms_over(d, first_order[inside]),
                )
            )
        low = high
    return tuple(rows)


def _rms_over(d: Array, weight: Array) -> float:
    whole = float(weight.sum())
    return math.sqrt(float((d**2).sum()) / whole) if whole > 0 else 0.0


def quadrature_z(trainer: Array, rollout: Array) -> float:
    """Law 1: standard errors of the mean of e_T e_R from 0; over tokens, errors [N, T]."""
    product = _finite(trainer) * _finite(rollout)
    error = math.sqrt(float((product**2).sum()))
    return float(product.sum()) / error if error > 0 else 0.0


def probability_z(difference: Array, logprobs: Array, weight: Array) -> float:
    """Law 2: standard errors between sigma of tokens up to p = 1/2 and of those above.

    ``weight`` [N, T] as :func:`weight_of` gives it, or (1 - p)^2.
    """
    log_ratio, low = _finite(difference), np.exp(logprobs) <= 0.5
    squares = [(log_ratio**2 * part).sum(1) for part in (low, ~low)]
    weights = [(weight * part).sum(1) for part in (low, ~low)]
    return _log_ratio_z(squares[0], weights[0], squares[1], weights[1])


def temperature_z(
    usual: Array, weight: Array, other: Array, other_weight: Array, temperature: float
) -> float:
    """Law 3: standard errors between sigma at temperature 1 and tau times sigma at tau.

    Args:
        usual, other: [N, T] d at temperature 1 and at ``temperature``.
        weight, other_weight: [N, T] of law 2 at both.
    """
    first, second = ((_finite(d) ** 2).sum(1) for d in (usual, temperature * other))
    return _log_ratio_z(first, weight.sum(1), second, other_weight.sum(1))


def length_z(difference: Array) -> float:
    """Law 4: standard errors of S_T^2 - Q from 0, Q the sum of d^2, d less its mean.

    A sum of many uncorrelated d is near normal: its square has mean Q and variance 2 Q^2.
    """
    centred = _finite(difference)
    centred = centred - centred.mean()
    expected = (centred**2).sum(1)
    error = math.sqrt(2 * float((expected**2).sum()))
    return float((centred.sum(1) ** 2 - expected).sum()) / error if error > 0 else 0.0


def _log_ratio_z(a: Array, b: Array, c: Array, d: Array) -> float:
    """Of log (sum a / sum b) - log (sum c / sum d): value over its jackknife standard error."""
    if min(x.sum() for x in (a, b, c, d)) <= 0:
        return 0.0

    def log_ratio(*sums: Array) -> Array:
        of = [np.log(s) for s in sums]
        return np.asarray(of[0] - of[1] - of[2] + of[3])

    whole = float(log_ratio(*(x.sum() for x in (a, b, c, d))))
    left_out = log_ratio(*(x.sum() - x for x in (a, b, c, d)))
    count = len(a)
    error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    return whole / error if error > 0 else 0.0


def _finite(x: Array) -> Array:
    return np.where(np.isfinite(x), x, 0.0)
