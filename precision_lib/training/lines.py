"""The line of a step in ``steps.jsonl``; its keys, and their order, are those of the fields.

The KL, its log-ratios and the entropy are in nats, rewards, values and returns in reward units.
``docs/training.md`` explains each figure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from precision_lib.jsonio import FLAT

#: A figure of a line as the file holds it: a number that is not finite is its name.
Figure = float | bool | str | None
#: A line as the file holds it.
Figures = dict[str, Figure]


@dataclass(frozen=True)
class Learning:
    """What every PPO log shows, over real tokens and over the minibatches.

    Attributes:
        kl_sequence_mean: of the penalty, summed over a response.
        value_error_rms, return_rms: against Monte Carlo returns.
        updates, skipped_updates: minibatches, and those whose gradient was not finite.
        values_unchanged_frac: None where no update was looked at.
        importance_weight_mean, importance_weight_truncated_frac: None without importance weights.
    """

    reward_mean: float
    reward_std: float
    kl_sequence_mean: float
    kl_coefficient: float
    entropy_mean: float
    response_length_mean: float
    explained_variance: float
    value_error_rms: float
    return_rms: float
    policy_loss: float
    value_loss: float
    clip_frac: float
    approx_kl: float
    log_ratio_smallest: float
    log_ratio_largest: float
    ratio_overflows: int
    first_log_ratio: float
    gradient_norm: float
    updates: int
    skipped_updates: int
    values_unchanged_frac: float | None
    importance_weight_mean: float | None
    importance_weight_truncated_frac: float | None


@dataclass(frozen=True)
class Symptoms:
    """What a run can see of itself, over the whole rollout.

    A name of the main job is the same function here. Zero log-ratios are those within one FP32 ulp
    of the log-prob; those of the rollout are old log-probs minus what the sampler reported.
    """

    kl_penalty_mean: float
    log_ratio_near_zero_frac: float
    k3_negative_frac: float
    log_ratio_nonfinite_frac: float
    kl_k1_mean: float
    log_ratio_all_zero: bool
    reward_resolution_median: float | None
    value_quant_step_median: float | None
    rollout_log_ratio_final: float
    rollout_logprob_abs_diff_mean: float
    rollout_token_outside_clip_frac: float
    rollout_k3: float
    rollout_sequence_ess: float
    rollout_nonfinite_frac: float


@dataclass(frozen=True)
class Damage:
    """Every figure that needs the truth, of the diagnostic sequences; None where there is none.

    A name of the main job is the same function here. ``gae_rms_error`` and ``gae_sign_flip_frac``
    are of the whitened GAE advantages that the step trains on: what all formats together do to
    them. ``score_tie_frac`` and ``score_kendall_tau`` compare all pairs of scores, across prompts.
    """

    golden_kl_penalty_mean: float
    log_ratio_nsr: float | None
    kl_k3_rel_error: float | None
    accum_err_final: float
    accum_err_growth_exponent: float
    drift_nats_per_1000_tokens: float
    log_ratio_rms_error: float
    sequence_ratio_ess: float
    gae_rms_error: float | None
    gae_sign_flip_frac: float
    value_td_zero_frac: float | None
    score_tie_frac: float | None
    score_kendall_tau: float | None


@dataclass(frozen=True)
class Timing:
    """Seconds of each phase and of the step, and response tokens per second of the step."""

    rollout_seconds: float
    diagnostics_seconds: float
    update_seconds: float
    step_seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class StepLine:
    """All figures of one step.

    Attributes:
        weights_moved_frac: share of the working copy's weights that the step changed.
    """

    step: int
    learning: Learning = field(metadata=FLAT)
    symptoms: Symptoms = field(metadata=FLAT)
    damage: Damage = field(metadata=FLAT)
    weights_moved_frac: float
    timing: Timing = field(metadata=FLAT)


def numbers(lines: Iterable[Figures], name: str) -> list[float]:
    """A figure of each line, in their order; those left out that have none."""
    return [x for line in lines if isinstance(x := line.get(name), int | float)]
