"""What FP32 makes of some of a rollout's sequences: the truth that a step's damage is measured by.

The hazard. A training run shows its symptoms (zero log-ratios, ties, values that do not change) and
not its damage. So a few sequences of every rollout are scored once more, by the FP32 masters of the
same step and the FP32 originals of reference and reward model. A configuration that is FP32
throughout is its own truth, and its errors are 0 by definition; the error of FP32 itself is
measured by the main job, in float64.

D diagnostic sequences, the first of the rollout; T response tokens.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.h1.kl_collapse import k3_penalty
from precision_lib.forensics.h2 import reward_quantization as h2
from precision_lib.forensics.h4 import reference_drift as h4
from precision_lib.formats import FORMATS, format_of, ulp
from precision_lib.matrix import get_configuration
from precision_lib.ppo.advantages import gae
from precision_lib.training.rollout import (
    Experience,
    ScoredRollout,
    TrainingModels,
    learn_from,
    score,
)
from precision_lib.training.settings import PPOSettings
from precision_lib.training.weights import Weights
from precision_lib.trajectories.batches import Sampled

REFERENCE_RUN = get_configuration("fp32_baseline")


def first_rows(sampled: Sampled, count: int) -> Sampled:
    """The first ``count`` sequences of a rollout, padded as they were."""
    return Sampled(**{k: v[:count] for k, v in vars(sampled).items()})


def golden_experience(
    models: TrainingModels,
    weights: Weights,
    experience: Experience,
    settings: PPOSettings,
    kl_coefficient: float,
) -> tuple[Experience, Experience]:
    """(as the configuration has it, as FP32 has it) of the diagnostic sequences.

    Advantages are whitened over these sequences alone, in both.
    """
    count = min(settings.diagnostic_sequences, len(experience.given.tokens))
    sampled, given = first_rows(experience.sampled, count), experience.given.rows(slice(count))
    own = _first(experience.scored, count)
    if models.configuration.components == REFERENCE_RUN.components:
        exact = own
    else:
        originals = replace(
            models,
            configuration=REFERENCE_RUN,
            reference=models.pipeline.reference.model,
            reward=models.pipeline.reward.model,
        )
        in_fp32 = replace(weights, working=weights.golden)
        exact = score(originals, in_fp32, sampled, given, [slice(count)])
    kl = models.configuration.kl
    return (
        learn_from(sampled, given, own, settings, kl, kl_coefficient),
        learn_from(sampled, given, exact, settings, "fp32", kl_coefficient),
    )


def _first(scored: ScoredRollout, count: int) -> ScoredRollout:
    tensors: dict[str, Any] = {
        name: x[:count] for name, x in vars(scored).items() if isinstance(x, Tensor)
    }
    return replace(scored, **tensors)


def damage(got: Experience, want: Experience) -> dict[str, float | None]:
    """Every metric that needs the truth, by the names of H1 to H4; None where there is nothing.

    ``advantage_rms_error`` and ``advantage_sign_flip_frac`` are of the whitened GAE advantages that
    the step trains on: what all formats together do to them.
    """
    mask = got.given.mask
    d, true = got.penalty.double(), want.penalty.double()
    return (
        _log_ratio(d[mask], true[mask])
        | _along_the_sequence(torch.where(mask, d - true, 0.0), mask)
        | _advantages(got, want)
        | _ranking(got.scored.scores, want.scored.scores)
    )


def _log_ratio(d: Tensor, true: Tensor) -> dict[str, float | None]:
    signal = float(true.square().sum())
    golden_k3 = float(k3_penalty(true).mean())
    own_k3 = float(k3_penalty(d).mean())
    return {
        "golden_kl_penalty_mean": golden_k3,
        "log_ratio_nsr": (float((d - true).square().sum()) / signal) ** 0.5 if signal else None,
        "kl_k3_rel_error": own_k3 / golden_k3 - 1 if golden_k3 else None,
    }


def _along_the_sequence(error: Tensor, mask: Tensor) -> dict[str, float | None]:
    """H4's metrics of errors [D, T], 0 behind the end, so that the last sum is the sequence's."""
    sums = h4.sequence_sums(error.numpy())
    totals = {name: value.sum() for name, value in sums.items()}
    totals["tokens"] = mask.sum().double().numpy()
    return {name: float(h4.METRICS[name][0](totals)) for name in H4_METRICS}


H4_METRICS = (
    "accum_err_final",
    "accum_err_growth_exponent",
    "drift_nats_per_1000_tokens",
    "log_ratio_rms_error",
    "sequence_ratio_ess",
)


def _advantages(got: Experience, want: Experience) -> dict[str, float | None]:
    mask = got.given.mask
    a, true = got.advantages[mask].double(), want.advantages[mask].double()
    power = float(true.square().mean())
    td, golden_td = (_td_errors(e)[mask] for e in (got, want))
    nonzero = golden_td != 0
    return {
        "advantage_rms_error": (float((a - true).square().mean()) / power) ** 0.5
        if power
        else None,
        "advantage_sign_flip_frac": float((a * true < 0).double().mean()),
        "value_td_zero_frac": float((td[nonzero] == 0).double().mean())
        if bool(nonzero.any())
        else None,
    }


def _td_errors(experience: Experience) -> Tensor:
    """[D, T] r_t + V_(t+1) - V_t in float64, gamma 1, the value behind the last token being 0."""
    mask = experience.given.mask
    values = experience.scored.values.double()
    delta, _ = gae(experience.rewards.double(), values, mask, 1.0, 0.0)
    return delta


def _ranking(scores: Tensor, golden: Tensor) -> dict[str, float | None]:
    """H2's figures over all pairs of the diagnostic sequences."""
    if len(golden) < 2 or not bool(torch.isfinite(golden).all()):
        return dict.fromkeys(("reward_tie_frac", "reward_kendall_tau"))
    sums = h2.group_sums(scores, golden, torch.zeros(len(scores), dtype=torch.int64))
    return {name: h2.value(sums, name) for name in ("reward_tie_frac", "reward_kendall_tau")}


def symptoms(experience: Experience) -> dict[str, float | bool | None]:
    """What a run can see of itself, over the whole rollout: seed metrics of H1 to H3.

    Zero log-ratios are those within one FP32 ulp of the log-prob.
    """
    mask, scored = experience.given.mask, experience.scored
    d = experience.penalty[mask]
    step = ulp(scored.ref_logprobs[mask].float(), FORMATS["fp32"])
    k3 = k3_penalty(d)
    values, scores = scored.values[mask], scored.scores
    return {
        "kl_penalty_mean": float(k3.double().mean()),
        "kl_k1_mean": float(d.double().mean()),
        "log_ratio_near_zero_frac": float((d.double().abs() <= step).double().mean()),
        "log_ratio_all_zero": bool((d == 0).all()),
        "k3_negative_frac": float((k3 < 0).double().mean()),
        "reward_resolution_median": _median_step(scores),
        "value_quant_step_median": _median_step(values),
    }


def _median_step(x: Tensor) -> float | None:
    kept = x[torch.isfinite(x)]
    return float(ulp(kept, format_of(kept.dtype)).median()) if len(kept) else None
