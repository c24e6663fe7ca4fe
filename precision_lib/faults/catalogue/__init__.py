"""The list of faults: what each breaks, where it was seen, and which test has to notice.

This is data. The broken functions stand in the other modules of ``faults`` and are imported when
one is used. The harmless ones at the end are refactorings that no check may notice.
"""

from precision_lib.faults.catalogue.distributions import ENTROPY, KL_PENALTY, TOKEN_LOGPROBS
from precision_lib.faults.catalogue.fault import Fault
from precision_lib.faults.catalogue.harmless import HARMLESS
from precision_lib.faults.catalogue.losses import POLICY_LOSS, VALUE_LOSS
from precision_lib.faults.catalogue.pipeline import PIPELINE
from precision_lib.faults.catalogue.statistics import GAE, GROUP_ADVANTAGES, MASKED_MEAN, WHITEN

__all__ = ["CATALOGUE", "Fault"]

CATALOGUE: tuple[Fault, ...] = (
    *TOKEN_LOGPROBS,
    *ENTROPY,
    *KL_PENALTY,
    *MASKED_MEAN,
    *WHITEN,
    *GROUP_ADVANTAGES,
    *GAE,
    *POLICY_LOSS,
    *VALUE_LOSS,
    *PIPELINE,
    *HARMLESS,
)
