"""Adversarial input for the nine functions: Hypothesis strategies by function and named region.

The hazard. Random N(0, 1) tensors never visit the places where cores differ: their worst error is
25 times below that of an input chosen to be hard. So the input space of each function is divided
into regions that each name one difficulty, and a region's cases really have it, in the format they
are drawn in. Cases are deterministic in the draws, shrink to small shapes and round numbers, and
offer integer coordinates for ``hypothesis.target`` to climb.

``REGIONS[function][region]`` is a :class:`Region`; ``Region.cases(fmt)`` draws :class:`Case`.
"""

from precision_lib.conformance.strategies.advantages import GAE
from precision_lib.conformance.strategies.as_trained import AS_TRAINED
from precision_lib.conformance.strategies.cases import (
    INPUT_FORMATS,
    SEVERITIES,
    Case,
    Region,
    hex_tensor,
    right_padded,
    within,
)
from precision_lib.conformance.strategies.kl import KL_PENALTY
from precision_lib.conformance.strategies.losses import POLICY_LOSS, VALUE_LOSS
from precision_lib.conformance.strategies.severities import with_severity
from precision_lib.conformance.strategies.softmax import ENTROPY, TOKEN_LOGPROBS
from precision_lib.conformance.strategies.statistics import (
    GROUP_ADVANTAGES,
    MASKED_MEAN,
    WHITEN,
)

__all__ = [
    "INPUT_FORMATS",
    "REGIONS",
    "SEVERITIES",
    "Case",
    "Region",
    "hex_tensor",
    "right_padded",
    "within",
]

_DRAWN: dict[str, dict[str, Region]] = {
    "token_logprobs": TOKEN_LOGPROBS,
    "entropy": ENTROPY,
    "kl_penalty": KL_PENALTY,
    "masked_mean": MASKED_MEAN,
    "whiten": WHITEN,
    "gae": GAE,
    "group_advantages": GROUP_ADVANTAGES,
    "policy_loss": POLICY_LOSS,
    "value_loss": VALUE_LOSS,
}


#: Function to name to region.
REGIONS: dict[str, dict[str, Region]] = {
    function: {
        name: with_severity(name, region)
        for name, region in (regions | AS_TRAINED.get(function, {})).items()
    }
    for function, regions in _DRAWN.items()
}
