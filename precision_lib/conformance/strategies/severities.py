"""Who meets a region, by its name: see ``SEVERITIES``."""

from dataclasses import replace

from precision_lib.conformance.strategies.cases import Region

#: Regions that no training run reaches: only the range of a format ends there.
_RANGE = {
    "far_harmful",
    "large_errors",
    "large_vocabulary",  # 150,000 logits that are all alike; ``as_trained`` has others
    "near_overflow",
    "subnormal",
    "tiny_advantages",
}
#: Regions that a run reaches on a bad day, or by an edge of the contract.
_EDGE = {
    "apart",
    "cancelling",
    "constant",
    "far",
    "far_negative",
    "far_positive",
    "identical",
    "low_probability",
    "masked_nonfinite",
    "minus_inf",
    "one_sample",
    "single_token",
    "tiny_logprobs",
    "zero_advantages",
}


#: Share of a region's examples where a failure fails no run.
_COST_OF_RANGE = 0.4


def with_severity(name: str, region: Region) -> Region:
    """The region with the severity of its name; one of ``range`` gets fewer examples."""
    if name in _RANGE:
        return replace(region, severity="range", cost=_COST_OF_RANGE * region.cost)
    return replace(region, severity="edge" if name in _EDGE else region.severity)
