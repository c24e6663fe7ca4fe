"""The truth for the kernels, in float64 and mpmath; imports nothing from ``ppo``, nor torch.

The hazard. An oracle that shares code, or a library routine, with the code under test shares its
errors. So this package uses numpy and mpmath instead of torch, ``math.fsum`` for sums, loops
instead of vectors. Inputs are taken as exact. Results are float64 with an error below a thousandth
of any FP32 bound. Overflow beyond float64 gives an infinity, and NaN appears only where no limit
exists.

B sequences, T response tokens, V vocabulary entries, G groups, K samples. ``mask[b, t]`` is True
for a real token; masked slots may hold NaN or inf.
"""

from precision_lib.oracle.advantages import gae, rloo_advantages
from precision_lib.oracle.aggregation import aggregate, aggregate_gradient
from precision_lib.oracle.divergences import jsd, jsd_gradient
from precision_lib.oracle.kl import k3, kl_penalty, kl_penalty_gradient
from precision_lib.oracle.linear import (
    linear_token_logprobs,
    linear_token_logprobs_gradients,
    scaled_logits,
)
from precision_lib.oracle.losses import (
    policy_loss,
    policy_loss_gradient,
    value_loss,
    value_loss_gradient,
)
from precision_lib.oracle.objectives import (
    cispo_loss,
    cispo_loss_gradient,
    dapo_loss,
    dapo_loss_gradient,
    gspo_loss,
    gspo_loss_gradient,
)
from precision_lib.oracle.preferences import dpo_loss, dpo_loss_gradients
from precision_lib.oracle.ratios import (
    importance_weights,
    sequence_ratio,
    sequence_ratio_gradient,
)
from precision_lib.oracle.softmax import (
    entropy,
    entropy_gradient,
    token_logprob,
    token_logprobs,
    token_logprobs_gradient,
)
from precision_lib.oracle.statistics import (
    group_advantages,
    masked_mean,
    masked_mean_gradient,
    whiten,
)
