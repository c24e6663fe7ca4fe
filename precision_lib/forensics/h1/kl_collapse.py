"""H1, KL collapse: does a KL computed in bf16 lose the signal near the reference?

The hazard. Near the reference the log-ratio d = log pi - log pi_ref is a small difference of
numbers around -2, where bf16 has a step of 2**-6. The usual reading, "catastrophic cancellation",
is wrong in an instructive way: the subtraction of two nearby bf16 numbers is exact. What is lost
was lost in the roundings before it: of the weights, the activations, the logits, the log-probs. So
an FP32 KL on bf16 logits cures the *symptom*, log-ratios that are exactly zero, and need not cure
the *damage*, log-ratios that are wrong. Both are measured, side by side.

=========================  =====================================================================
metric                     on M response tokens, policy at a known true KL
=========================  =====================================================================
kl_penalty_mean            mean k3 penalty as the configuration computes it, nats per token
log_ratio_near_zero_frac   share of |d| <= one FP32 ulp of the log-prob: no signal at all
log_ratio_nsr              RMS(d - d_golden) / RMS(d_golden)
kl_k3_rel_error            sum k3 / sum k3_golden - 1: above 0 inflated, -1 collapsed
k3_negative_frac           share of k3 < 0, which no KL is
k3_textbook_rel_error      } the same two for exp(-d) - 1 + d evaluated as written, the form that
k3_textbook_negative_frac  } some frameworks ship, in the configuration's KL format
log_ratio_nonfinite_frac   share of d that is inf or NaN (fp16 overflow); they enter nothing else,
                           and a cell that has any is impaired
=========================  =====================================================================

Golden: FP32 log-probs of the same tokens, k3 in float64. A configuration that is FP32 in policy,
reference and KL is itself the golden path, so it is measured against the exact float64 model.
"""

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics.forwards import EXACT, FIRST, GOLDEN, POLICY, REFERENCE, Forwards
from precision_lib.forensics.statistics import Array, MetricFunction, Totals
from precision_lib.formats import FORMATS, get_format, round_to, ulp
from precision_lib.matrix import PrecisionConfig
from precision_lib.ppo import kl


def _share(name: str) -> MetricFunction:
    return lambda t: t[name] / t["tokens"]


def _nsr(totals: Totals) -> Array:
    return np.sqrt(totals["error2"] / totals["signal2"])


#: Metric name to (function of totals over tokens, unit).
METRICS: dict[str, tuple[MetricFunction, str]] = {
    "kl_penalty_mean": (_share("k3"), "nats/token"),
    "log_ratio_near_zero_frac": (_share("near_zero"), "share of tokens"),
    "log_ratio_nsr": (_nsr, "RMS error / RMS signal"),
    "kl_k3_rel_error": (lambda t: t["k3"] / t["golden_k3"] - 1, "relative to golden"),
    "k3_negative_frac": (_share("k3_negative"), "share of tokens"),
    "k3_textbook_rel_error": (lambda t: t["textbook"] / t["golden_k3"] - 1, "relative to golden"),
    "k3_textbook_negative_frac": (_share("textbook_negative"), "share of tokens"),
    "log_ratio_nonfinite_frac": (_share("nonfinite"), "share of tokens"),
}


def textbook_k3(log_ratio: Tensor) -> Tensor:
    """exp(-d) - 1 + d, every operation rounded to the format of ``log_ratio``."""
    return torch.exp(-log_ratio) - 1 + log_ratio


def is_golden(configuration: PrecisionConfig) -> bool:
    """True where the configuration's H1 components are those of the golden path itself."""
    models = {configuration.forward_format(model) for model in (POLICY, REFERENCE)}
    return models | {configuration.kl} == {GOLDEN}


def log_ratio(
    forwards: Forwards, configuration: PrecisionConfig, policy: int, run: str = FIRST
) -> Tensor:
    """[M] log-ratio as the configuration computes it, in its KL format.

    ``run`` as in :meth:`Forwards.scored`.
    """
    moved = forwards.scored(POLICY, policy, configuration.forward_format(POLICY), run)
    reference = forwards.scored(REFERENCE, 0, configuration.forward_format(REFERENCE), run)
    logprobs, dtype = configuration.kl, get_format(configuration.kl).dtype
    return kl.kl_penalty(moved.logprobs[logprobs], reference.logprobs[logprobs], "k1", dtype)


def k3_penalty(ratio: Tensor) -> Tensor:
    """k3 of a log-ratio that is already computed, in its own format."""
    return kl.kl_penalty(ratio, torch.zeros_like(ratio), "k3", ratio.dtype)


def golden_log_ratio(forwards: Forwards, policy: int, fmt: str = GOLDEN) -> Tensor:
    """[M] float64 log-ratio of the models in ``fmt``: what a configuration is measured against."""
    pair = [forwards.scored(role, policy, fmt).logprobs[fmt] for role in (POLICY, REFERENCE)]
    return pair[0].double() - pair[1].double()


def token_quantities(
    forwards: Forwards, configuration: PrecisionConfig, policy: int, run: str = FIRST
) -> dict[str, Tensor]:
    """[M] float64 summands of every metric, by name; finite."""
    ratio = log_ratio(forwards, configuration, policy, run)
    finite = torch.isfinite(ratio)
    golden = golden_log_ratio(forwards, policy, EXACT if is_golden(configuration) else GOLDEN)
    resolution = ulp(forwards.scored(REFERENCE, 0, GOLDEN).logprobs[GOLDEN], FORMATS[GOLDEN])
    k3, textbook = k3_penalty(ratio), textbook_k3(ratio)
    computed = {
        "error2": (ratio.double() - golden) ** 2,
        "near_zero": ratio.double().abs() <= resolution,
        "k3": k3,
        "k3_negative": k3 < 0,
        "textbook": textbook,
        "textbook_negative": textbook < 0,
    }
    zero = torch.zeros_like(golden)
    return {
        "tokens": torch.ones_like(golden),
        "nonfinite": (~finite).double(),
        "signal2": golden**2,
        "golden_k3": k3_penalty(golden),
    } | {name: torch.where(finite, value.double(), zero) for name, value in computed.items()}


def zero_probability(move: Tensor, step: Tensor) -> Tensor:
    """Probability that a value keeps its cell of a grid of ``step`` when it moves by ``move``.

    For a phase that is uniform over the cell: max(0, 1 - |move| / step).
    """
    return (1 - move.abs() / step).clamp(min=0)


def predicted_near_zero(forwards: Forwards, policy: int) -> Tensor:
    """[M] probability that FP32 models with a bf16 KL give a log-ratio of exactly zero.

    The logits are rounded first: with their rounding known, the log-probs of policy and reference
    differ by ``rounded_move``. Then each log-prob is rounded, on a grid of step h. Where on the
    grid a log-prob falls is as good as random, so the two fall together with probability
    max(0, 1 - |rounded_move| / h).
    """
    theory = forwards.theory(policy)
    return zero_probability(theory.rounded_move, ulp(theory.reference_logprob, FORMATS["bf16"]))


def rounding_parts(forwards: Forwards, policy: int) -> dict[str, float]:
    """:func:`_nsr` of a bf16 KL on FP32 models, by the rounding that makes it.

    ``logits_only``: the logits cast to bf16, everything behind them exact. ``log_probs_only``: the
    exact log-probs of FP32 logits, rounded to bf16.
    """
    theory, bf16 = forwards.theory(policy), FORMATS["bf16"]
    exact = theory.policy_logprob - theory.reference_logprob
    rounded = round_to(theory.policy_logprob, bf16) - round_to(theory.reference_logprob, bf16)

    def noise(move: Tensor) -> float:
        return float(((move - exact) ** 2).sum().sqrt() / (exact**2).sum().sqrt())

    return {"logits_only": noise(theory.rounded_move), "log_probs_only": noise(rounded)}
