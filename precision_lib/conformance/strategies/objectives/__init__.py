"""Adversarial input for the functions of today's objectives, by function and named region."""

from dataclasses import replace

from precision_lib.conformance.strategies.cases import Region
from precision_lib.conformance.strategies.objectives.aggregation import AGGREGATE
from precision_lib.conformance.strategies.objectives.clipped import (
    CISPO_LOSS,
    DAPO_LOSS,
    GSPO_LOSS,
)
from precision_lib.conformance.strategies.objectives.linear import LINEAR_TOKEN_LOGPROBS
from precision_lib.conformance.strategies.objectives.options import WITH_OPTIONS
from precision_lib.conformance.strategies.objectives.preferences import DPO_LOSS, JSD
from precision_lib.conformance.strategies.objectives.ratios import (
    IMPORTANCE_WEIGHTS,
    SEQUENCE_RATIO,
)
from precision_lib.conformance.strategies.objectives.rewards import RLOO_ADVANTAGES
from precision_lib.conformance.strategies.severities import with_severity

__all__ = ["OBJECTIVE_REGIONS"]

#: Share of the normal number of examples: the whole run has a minute on one core.
_SHARE = 0.64

_REGIONS: dict[str, dict[str, Region]] = {
    "aggregate": AGGREGATE,
    "importance_weights": IMPORTANCE_WEIGHTS,
    "sequence_ratio": SEQUENCE_RATIO,
    "gspo_loss": GSPO_LOSS,
    "cispo_loss": CISPO_LOSS,
    "dapo_loss": DAPO_LOSS,
    "linear_token_logprobs": LINEAR_TOKEN_LOGPROBS,
    "rloo_advantages": RLOO_ADVANTAGES,
    "dpo_loss": DPO_LOSS,
    "jsd": JSD,
    **WITH_OPTIONS,
}
OBJECTIVE_REGIONS: dict[str, dict[str, Region]] = {
    function: {
        name: with_severity(name, replace(about, cost=_SHARE * about.cost))
        for name, about in regions.items()
    }
    for function, regions in _REGIONS.items()
}
