"""Log-ratios near the reference: zeros, noise over signal, and what k2 and k3 make of them.

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

import torch
from torch import Tensor

from precision_lib.formats import FORMATS, round_to, ulp
from precision_lib.ppo import kl


def textbook_k3(log_ratio: Tensor) -> Tensor:
    """exp(-d) - 1 + d, every operation rounded to the format of ``log_ratio``."""
    return torch.exp(-log_ratio) - 1 + log_ratio


def k3_penalty(ratio: Tensor) -> Tensor:
    """k3 of a log-ratio that is already computed, in its own format."""
    return kl.kl_penalty(ratio, torch.zeros_like(ratio), "k3", ratio.dtype)


def token_quantities(ratio: Tensor, golden: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """[M] float64 summands of every metric, by name; finite.

    Args:
        ratio: [M] log-ratio as computed, in the format of the KL; may hold inf and NaN.
        golden: [M] float64, what it is measured against.
        reference: [M] FP32 log-probs of the reference, whose ulp is no signal.
    """
    error2 = torch.where(torch.isfinite(ratio), (ratio.double() - golden) ** 2, 0.0)
    true = {"error2": error2, "signal2": golden**2, "golden_k3": k3_penalty(golden)}
    return own_quantities(ratio, reference) | true


def own_quantities(ratio: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Those of :func:`token_quantities` that need no truth: what a run sees of itself."""
    finite, k3, textbook = torch.isfinite(ratio), k3_penalty(ratio), textbook_k3(ratio)
    computed = {
        "near_zero": ratio.double().abs() <= ulp(reference, FORMATS["fp32"]),
        "k3": k3,
        "k3_negative": k3 < 0,
        "textbook": textbook,
        "textbook_negative": textbook < 0,
    }
    counts = {"tokens": torch.ones_like(finite).double(), "nonfinite": (~finite).double()}
    return counts | {n: torch.where(finite, x.double(), 0.0) for n, x in computed.items()}


def zero_probability(move: Tensor, step: Tensor) -> Tensor:
    """Probability that a value keeps its cell of a grid of ``step`` when it moves by ``move``.

    For a phase that is uniform over the cell: max(0, 1 - |move| / step).
    """
    return (1 - move.abs() / step).clamp(min=0)


def predicted_near_zero(rounded_move: Tensor, reference: Tensor) -> Tensor:
    """[M] probability that FP32 models with a bf16 KL give a log-ratio of exactly zero.

    The logits are rounded first: with their rounding known, the log-probs of policy and reference
    differ by ``rounded_move``. Then each log-prob is rounded, on a grid of step h. Where on the
    grid a log-prob falls is as good as random, so the two fall together with probability
    max(0, 1 - |rounded_move| / h). ``reference``: its exact log-probs.
    """
    return zero_probability(rounded_move, ulp(reference, FORMATS["bf16"]))


def rounding_parts(policy: Tensor, reference: Tensor, rounded_move: Tensor) -> dict[str, float]:
    """``log_ratio_nsr`` of a bf16 KL on FP32 models, by the rounding that makes it.

    ``logits_only``: the logits cast to bf16, everything behind them exact. ``log_probs_only``: the
    exact log-probs ``policy`` and ``reference`` of FP32 logits, rounded to bf16.
    """
    exact, bf16 = policy - reference, FORMATS["bf16"]
    rounded = round_to(policy, bf16) - round_to(reference, bf16)

    def noise(move: Tensor) -> float:
        return float(((move - exact) ** 2).sum().sqrt() / (exact**2).sum().sqrt())

    return {"logits_only": noise(rounded_move), "log_probs_only": noise(rounded)}
