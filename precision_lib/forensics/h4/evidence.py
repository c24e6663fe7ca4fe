"""What H4 shows beside its cells: errors by position, the components alone, sums over a sequence.

The error of a log-ratio is the difference of two errors. Each is shown alone, beside how far the
two go together. N sequences, T tokens each.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from precision_lib.forensics.causal import Paired
from precision_lib.forensics.evidence import AccumulatedError, PolicyDrift
from precision_lib.forensics.h4.declaration import H4
from precision_lib.forensics.h4.expected_drift import ExpectedDrift, drift_z, no_drift_z, summary
from precision_lib.forensics.statistics import resample
from precision_lib.metrics import drift as h4
from precision_lib.metrics.drift import StoredSum
from precision_lib.metrics.measure import Array, Measure

LIMIT = H4.decision.limit
#: How long a sequence may be until the damage passes the limit.
CRITICAL = {"critical_length": Measure(partial(h4.critical_length, limit=LIMIT), "tokens")}
#: Does the error of a single token depend on its position?
TOKEN_GROWTH = {
    "token_error_growth_exponent": Measure(h4.token_growth_exponent, "power of the position")
}
#: Of a log-prob instead of a log-ratio, policy or reference alone.
COMPONENT_METRICS = ("accum_err_final", "accum_err_growth_exponent", "drift_nats_per_1000_tokens")


def over_sequences(count: int, seed: int, metrics: Mapping[str, Measure] = H4.metrics) -> Paired:
    """Metrics over ``count`` sequences, each a cluster of its own."""
    return Paired(metrics, resample(np.arange(count), seed))


def of_errors(
    error: Array, parts: dict[str, Array], stored: StoredSum, seed: int
) -> AccumulatedError:
    """Figures of one configuration.

    Args:
        error: [N, T] error of the log-ratio, nats.
        parts: role to [N, T] error of its log-prob alone, policy first.
        stored: error of the reference's sequence log-prob.
    """
    count, sums = len(error), h4.sequence_sums(error)
    paired = over_sequences(count, seed)
    token_growth = over_sequences(count, seed, TOKEN_GROWTH).estimates(sums)
    reached = float(np.sqrt(max(v.mean() for n, v in sums.items() if "accumulated2" in n)))
    critical = over_sequences(count, seed, CRITICAL).estimates(sums) if reached > LIMIT else {}
    return AccumulatedError(
        by_position=h4.by_position(error),
        components={
            role: paired.estimates(h4.sequence_sums(part), COMPONENT_METRICS)
            for role, part in parts.items()
        },
        error_correlation_of_components=correlation(*parts.values()),
        sequence_ratio_ess_gaussian=h4.gaussian_ess(error),
        outside_gspo_band_frac=h4.outside_gspo_band(error),
        reference_sequence_logprob_error=stored,
        metrics=paired.estimates(sums) | token_growth | critical,
    )


def of_drift(drift: ExpectedDrift, seed: int) -> PolicyDrift:
    """The policy's log-prob alone against FP32: how it adds up, and what theory expects of it."""
    paired, sums = over_sequences(len(drift.error), seed), h4.sequence_sums(drift.error)
    names = ("accum_err_final", "accum_err_growth_exponent")
    kl = float(drift.golden_kl.mean())
    return PolicyDrift(
        by_position=h4.by_position(drift.error),
        standard_errors_from_expected=drift_z(drift),
        standard_errors_from_none=no_drift_z(drift),
        critical_length_derived=h4.expected_critical_length(kl, LIMIT) if kl > 0 else None,
        metrics=paired.estimates(sums, names) | summary(drift, seed),
    )


def correlation(first: Array, second: Array) -> float:
    """Of the tokens' errors; 0 where one of them has none."""
    finite = np.isfinite(first) & np.isfinite(second)
    a, b = (np.where(finite, x, 0.0).ravel() for x in (first, second))
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else 0.0
