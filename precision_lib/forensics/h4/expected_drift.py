"""The drift that theory expects of a rounded model, exactly per context, against the drift seen.

The hazard. The sum of 16,000 errors scatters by as much as the drift that it is to show, so a
sampled estimate alone says neither "there is a drift" nor "there is none". But the expectation over
the next token is known: both models' full distributions are. For a golden model mu and an executed
model pi, per context,

- a token drawn from mu has an expected error E_mu[log pi - log mu] = -KL(mu || pi);
- a token drawn from pi itself has +KL(pi || mu);
- a token of a text that neither wrote has no expectation that the models know. With a logit error
  eta of mean zero that knows nothing of the token, log pi = log mu + eta_x - log E_mu[exp eta], and
  the normaliser alone gives -Var_mu(eta)/2, which is -KL(mu || pi) to second order. The claim to
  hold against it is that there is no drift for such tokens, a random walk only.

So the drift seen is reported as a share of -KL(mu || pi): 1 is the normaliser's law, 0 none.

N sequences, T tokens, V vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics.causal import Paired
from precision_lib.forensics.forwards import POLICY, Forwards
from precision_lib.forensics.statistics import Metric, resample
from precision_lib.metrics.measure import Array, Measure

#: Tokens of a block whose errors are summed: enough that the sum is near normal.
BLOCK = 32
#: Numbers of one float64 temporary: small enough to stay in the cache.
CHUNK = 2**20


@dataclass(frozen=True)
class ExpectedDrift:
    """Per token, float64, [N, T] each, nats.

    Attributes:
        error: log pi - log mu of the token.
        golden_kl, executed_kl: KL(mu || pi), KL(pi || mu) of the context.
        variance: of log pi - log mu under mu.
        surprise, surprise_variance: log mu of the token plus mu's entropy, and its variance under
            mu: of mean zero where the tokens are draws from mu.
    """

    error: Array
    golden_kl: Array
    executed_kl: Array
    variance: Array
    surprise: Array
    surprise_variance: Array


def pair_drift(executed: Tensor, golden: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """The fields of :class:`ExpectedDrift` from logits [n, T, V] of both models."""
    shape, vocabulary = tokens.shape, golden.shape[-1]
    rows = max(1, CHUNK // vocabulary)
    parts: dict[str, list[Tensor]] = {}
    pieces = (x.reshape(-1, *x.shape[2:]).split(rows) for x in (executed, golden, tokens))
    for piece in zip(*pieces, strict=True):
        for name, value in _rows_drift(*piece).items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values).view(shape) for name, values in parts.items()}


def _rows_drift(executed: Tensor, golden: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    log_p, log_q = (x.double().log_softmax(-1) for x in (executed, golden))
    p, q, index = log_p.exp(), log_q.exp(), tokens.unsqueeze(-1)
    ratio, zero = log_p - log_q, 0.0
    mean = torch.where(q > 0, q * ratio, zero).sum(-1)
    entropy = -torch.where(q > 0, q * log_q, zero).sum(-1)
    return {
        "error": ratio.gather(-1, index).squeeze(-1),
        "golden_kl": -mean,
        "executed_kl": torch.where(p > 0, p * ratio, zero).sum(-1),
        "variance": torch.where(q > 0, q * ratio**2, zero).sum(-1) - mean**2,
        "surprise": log_q.gather(-1, index).squeeze(-1) + entropy,
        "surprise_variance": torch.where(q > 0, q * log_q**2, zero).sum(-1) - entropy**2,
    }


def expected_drift(forwards: Forwards, policy: int, fmt: str) -> ExpectedDrift:
    """The policy executed in ``fmt`` against itself in FP32, on one group of sequences."""
    (responses,) = forwards.given.responses
    drifts = forwards.pair(pair_drift, policy, fmt, reference_role=POLICY)
    shape = len(responses.tokens), responses.length
    return ExpectedDrift(**{name: x.view(shape).numpy() for name, x in drifts.items()})


DRIFT_METRICS = {
    "seen": Measure(lambda t: 1000 * t["error"] / t["tokens"], "nats/1000 tokens"),
    "expected_of_golden_tokens": Measure(
        lambda t: -1000 * t["golden_kl"] / t["tokens"], "nats/1000 tokens"
    ),
    "expected_of_executed_tokens": Measure(
        lambda t: 1000 * t["executed_kl"] / t["tokens"], "nats/1000 tokens"
    ),
    "seen_as_share_of_expected": Measure(lambda t: -t["error"] / t["golden_kl"], "share of -KL"),
}


def summary(drift: ExpectedDrift, seed: int) -> dict[str, Metric]:
    """Drift seen and expected, with intervals."""
    names = ("error", "golden_kl", "executed_kl")
    sums = {name: getattr(drift, name).sum(1) for name in names}
    sums["tokens"] = np.full(len(drift.error), float(drift.error.shape[1]))
    paired = Paired(DRIFT_METRICS, resample(np.arange(len(drift.error)), seed))
    return paired.estimates(sums)


def no_drift_z(drift: ExpectedDrift) -> float:
    """Standard errors between the drift seen and none."""
    return float(drift.error.sum() / math.sqrt(drift.variance.sum()))


def drift_z(drift: ExpectedDrift) -> float:
    """Standard errors between the drift seen and -KL(mu || pi) summed over the contexts.

    For tokens drawn from mu, error + KL is a martingale difference of known variance given its
    context, so the sum over all tokens over the root of the summed variances is standard normal.
    """
    return float((drift.error + drift.golden_kl).sum() / math.sqrt(drift.variance.sum()))


def random_walk_z(drift: ExpectedDrift) -> float:
    """Standard errors by which the sequences' sums scatter more or less than theory says.

    Given their contexts, error + KL(mu || pi) is a martingale difference of known variance for
    tokens drawn from mu, so sums over blocks of :data:`BLOCK` tokens are uncorrelated: the squares
    of n of them over their variances have mean 1 and, for sums of many tokens, a variance of 2.
    Without any scatter it is -sqrt(n / 2).
    """
    whole = drift.error.shape[1] // BLOCK * BLOCK
    excess, variance = (
        x[:, :whole].reshape(-1, BLOCK).sum(1)
        for x in (drift.error + drift.golden_kl, drift.variance)
    )
    squares = excess**2 / variance
    return float((squares - 1).sum() / math.sqrt(2 * len(squares)))


def source_z(drift: ExpectedDrift) -> float:
    """Standard errors by which the tokens' log-probs miss minus the entropy of the FP32 policy.

    Of order 1 where the tokens are its own draws; a shift by one, another temperature or far other
    weights give hundreds. It does not tell the policy from a reference 1e-4 nats away.
    """
    return float(drift.surprise.sum() / math.sqrt(drift.surprise_variance.sum()))
