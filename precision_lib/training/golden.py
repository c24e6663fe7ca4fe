"""What FP32 makes of some of a rollout's sequences: the truth that a step's damage is measured by.

The hazard. A training run shows its symptoms (zero log-ratios, ties, values that do not change) and
not its damage. So a few sequences of every rollout are scored once more, by the FP32 masters of the
same step and the FP32 originals of reference and reward model. A configuration that is FP32
throughout is its own truth, and its errors are 0 by definition; the error of FP32 itself is
measured by the main job, in float64.

D diagnostic sequences, the first of the rollout; T response tokens.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics.h1.declaration import H1
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.h3.declaration import H3
from precision_lib.forensics.h4.declaration import H4
from precision_lib.forensics.hypothesis import Hypothesis
from precision_lib.formats import format_of, ulp
from precision_lib.matrix import get_configuration
from precision_lib.metrics import drift, log_ratio, rewards, rollout, values
from precision_lib.metrics.measure import level_counts, median_level
from precision_lib.training.lines import Damage, Symptoms
from precision_lib.training.rollout import (
    Experience,
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
    own = experience.scored.first(count)
    if models.configuration.trainer_components == REFERENCE_RUN.components:
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


def damage(got: Experience, want: Experience) -> Damage:
    """Every figure that needs the truth."""
    mask, true = got.given.mask, want.advantages[got.given.mask].double()
    error = torch.where(mask, got.penalty.double() - want.penalty.double(), 0.0)
    # 0 behind the end, so that the last sum is the sequence's.
    drifted = drift.sequence_sums(error.numpy()) | {"tokens": mask.sum(1).double().numpy()}
    ratios = _log_ratio_sums(got, want)
    a, power = got.advantages[mask].double(), float(true.square().mean())
    td = (values.td_errors(e.scored.values[mask], e.rewards, mask) for e in (got, want))
    return Damage(
        golden_kl_penalty_mean=float(ratios["golden_k3"].mean()),
        log_ratio_nsr=_of(H1, "log_ratio_nsr", ratios, "signal2"),
        kl_k3_rel_error=_of(H1, "kl_k3_rel_error", ratios, "golden_k3"),
        **{name: H4.metrics[name].of(drifted) for name in H4_METRICS},
        gae_rms_error=(float((a - true).square().mean()) / power) ** 0.5 if power else None,
        gae_sign_flip_frac=float((a * true < 0).double().mean()),
        value_td_zero_frac=_of(H3, "value_td_zero_frac", values.lost_td_errors(*td), "td_nonzero"),
        score_tie_frac=_ranked("reward_tie_frac", got.scored.scores, want.scored.scores),
        score_kendall_tau=_ranked("reward_kendall_tau", got.scored.scores, want.scored.scores),
    )


H4_METRICS = (
    "accum_err_final",
    "accum_err_growth_exponent",
    "drift_nats_per_1000_tokens",
    "log_ratio_rms_error",
    "sequence_ratio_ess",
)


def _log_ratio_sums(got: Experience, want: Experience) -> dict[str, Tensor]:
    """Of the log-ratios, k3 of both in float64: FP32 is its own truth, with an error of 0."""
    mask = got.given.mask
    true, reference = want.penalty[mask].double(), want.scored.ref_logprobs[mask].float()
    return log_ratio.token_quantities(got.penalty[mask].double(), true, reference)


def _of(
    hypothesis: Hypothesis, metric: str, sums: Mapping[str, Tensor], something: str
) -> float | None:
    """A metric of the main job; None where the sum that it is relative to is 0."""
    return hypothesis.metrics[metric].of(sums) if float(sums[something].sum()) else None


def _ranked(metric: str, scores: Tensor, golden: Tensor) -> float | None:
    """A metric of H2 over all pairs of the diagnostic sequences; None without a finite pair."""
    if len(golden) < 2 or not bool(torch.isfinite(golden).all()):
        return None
    one_group = torch.zeros(len(scores), dtype=torch.int64)
    return H2.metrics[metric].of(rewards.group_sums(scores, golden, one_group))


def symptoms(experience: Experience) -> Symptoms:
    """What a run can see of itself, over the whole rollout."""
    mask, scored = experience.given.mask, experience.scored
    d = experience.penalty[mask]
    sums = log_ratio.own_quantities(d, scored.ref_logprobs[mask].float())
    difference = scored.logprobs.double() - scored.rollout_logprobs.double()
    return Symptoms(
        **{name: H1.metrics[name].of(sums) for name in H1_METRICS},
        kl_k1_mean=float(d.double().mean()),
        log_ratio_all_zero=bool((d == 0).all()),
        reward_resolution_median=_median_step(scored.scores),
        value_quant_step_median=_median_step(scored.values[mask]),
        **rollout.figures(rollout.padded_sums(difference.numpy(), mask.numpy())),
    )


H1_METRICS = (
    "kl_penalty_mean",
    "log_ratio_near_zero_frac",
    "k3_negative_frac",
    "log_ratio_nonfinite_frac",
)


def _median_step(x: Tensor) -> float | None:
    finite = x[torch.isfinite(x)]
    if not len(finite):
        return None
    steps = ulp(finite, format_of(finite.dtype)).numpy()
    counts = level_counts(steps, np.zeros(len(steps), dtype=np.int64), 1)
    return float(median_level({name: count.sum() for name, count in counts.items()}))
