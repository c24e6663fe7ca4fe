"""Error bounds of FP32 (or lower) arithmetic, from format, length and conditioning.

The hazard. A typed tolerance is too tight for a harder input or so loose that a wrong result
passes. Each bound here is the rounding-error argument written down, in the standard model
fl(a op b) = (a op b)(1 + e), |e| <= u, with gamma_n = n u / (1 - n u) (see ``model.py``).

A bound holds for any reasonable evaluation of the textbook formula in the format with blocked or
pairwise sums, not for one implementation, and for the value before it is stored in a narrower
format (add :func:`rounding_bound` for that). It is inf only where the exact result overflows, and
in :func:`whiten_bound` where the format promises nothing.

B sequences, T response tokens, V vocabulary entries, G groups, K samples; u the unit roundoff.
"""

from precision_lib.bounds.advantages import gae_bound, rloo_advantages_bound
from precision_lib.bounds.aggregation import aggregate_bound, aggregate_gradient_bound
from precision_lib.bounds.divergences import jsd_bound, jsd_gradient_bound
from precision_lib.bounds.kl import kl_bound, kl_gradient_bound
from precision_lib.bounds.linear import (
    linear_token_logprobs_bound,
    linear_token_logprobs_gradient_bounds,
    tempered_logprobs_bound,
    tempered_logprobs_gradient_bound,
)
from precision_lib.bounds.losses import (
    policy_loss_bound,
    policy_loss_gradient_bound,
    value_loss_bound,
    value_loss_gradient_bound,
)
from precision_lib.bounds.model import gamma, mean_bound, rounding_bound, sum_depth
from precision_lib.bounds.objectives import (
    cispo_loss_bound,
    cispo_loss_gradient_bound,
    dapo_loss_bound,
    dapo_loss_gradient_bound,
    gspo_loss_bound,
    gspo_loss_gradient_bound,
)
from precision_lib.bounds.preferences import dpo_loss_bound, dpo_loss_gradient_bounds
from precision_lib.bounds.products import product_bound
from precision_lib.bounds.ratios import (
    importance_weights_bound,
    sequence_ratio_bound,
    sequence_ratio_gradient_bound,
)
from precision_lib.bounds.softmax import (
    entropy_bound,
    entropy_gradient_bound,
    log_softmax_bound,
    log_softmax_gradient_bound,
)
from precision_lib.bounds.statistics import (
    group_advantages_bound,
    masked_mean_bound,
    masked_mean_gradient_bound,
    whiten_bound,
)
