"""The line of a step: every figure that the specification names, and the plain ones by numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lib.bounds import gamma
from precision_lib.formats import FORMATS
from precision_lib.ppo.kl import update_kl_coefficient
from precision_lib.record.codec import encode
from precision_lib.training.summary import FINAL_FIGURES
from precision_lib.training.trainer import SMALLEST_COEFFICIENT, ppo_step
from precision_lib.training.update import update
from tests.unit.small_runs import (
    DAMAGE,
    LEARNING,
    NAMES,
    SYMPTOMS,
    TIMES,
    UNHARMED,
    experience_of,
    opened,
    step_lines,
    train,
)

FP64 = FORMATS["fp64"]


#: In the order of the file, which earlier releases wrote as well.
KEYS = """
step reward_mean reward_std kl_sequence_mean kl_coefficient entropy_mean response_length_mean
explained_variance value_error_rms return_rms policy_loss value_loss clip_frac approx_kl
log_ratio_smallest log_ratio_largest ratio_overflows first_log_ratio gradient_norm updates
skipped_updates values_unchanged_frac importance_weight_mean importance_weight_truncated_frac
kl_penalty_mean log_ratio_near_zero_frac k3_negative_frac log_ratio_nonfinite_frac kl_k1_mean
log_ratio_all_zero reward_resolution_median value_quant_step_median rollout_log_ratio_final
rollout_logprob_abs_diff_mean rollout_token_outside_clip_frac rollout_k3 rollout_sequence_ess
rollout_nonfinite_frac golden_kl_penalty_mean log_ratio_nsr kl_k3_rel_error accum_err_final
accum_err_growth_exponent drift_nats_per_1000_tokens log_ratio_rms_error sequence_ratio_ess
gae_rms_error gae_sign_flip_frac value_td_zero_frac score_tie_frac score_kendall_tau
weights_moved_frac rollout_seconds diagnostics_seconds update_seconds step_seconds
tokens_per_second
"""


@pytest.mark.parametrize("name", NAMES)
def test_step_lines_hold_every_figure_and_nothing_else(name: str, tmp_path: Path) -> None:
    summary = train(tmp_path, name, max_steps=2)
    first, second = step_lines(tmp_path)
    for line in (first, second):
        assert list(line) == KEYS.split()
        assert set(line) == {"step", "tokens_per_second"} | LEARNING | SYMPTOMS | DAMAGE | TIMES
        for figure, value in line.items():
            assert value is None or isinstance(value, int | float), (figure, value)
            if figure.endswith(("_frac", "_rate")) and value is not None:
                assert 0 <= value <= 1, (figure, value)
        spent = sum(line[name] for name in TIMES - {"step_seconds"})
        assert 0 < spent <= line["step_seconds"]
        tokens = line["tokens_per_second"] * line["step_seconds"]
        assert tokens == pytest.approx(4 * line["response_length_mean"], rel=gamma(4, FP64))
    assert first["kl_k1_mean"] == 0
    assert first["log_ratio_nsr"] is None, "before the first update there is no signal"
    assert second["log_ratio_nsr"] is not None
    assert set(FINAL_FIGURES) <= set(first)
    assert summary.final.keys() == set(FINAL_FIGURES)
    assert summary.final["reward_mean"] == (first["reward_mean"] + second["reward_mean"]) / 2


def test_fp32_is_its_own_truth(tmp_path: Path) -> None:
    train(tmp_path, max_steps=3)
    for line in step_lines(tmp_path)[1:]:
        assert {name: line[name] for name in UNHARMED} == UNHARMED
        assert line["golden_kl_penalty_mean"] > 0
        assert line["golden_kl_penalty_mean"] != line["kl_penalty_mean"], "of two and of all"


def test_figures_of_a_rollout_are_those_that_numpy_finds() -> None:
    with opened("bf16_pure", batch_size=8) as run:
        ppo_step(run)
        experience = experience_of(run)
        line = encode(ppo_step(run))
    mask, scored = experience.given.mask.numpy(), experience.scored
    scores = scored.scores.double().numpy()
    d = np.where(mask, experience.penalty.double().numpy(), 0)
    values = scored.values.double().numpy()[mask]
    returns = experience.returns.double().numpy()[mask]
    rewards = np.where(mask, experience.rewards.double().numpy(), 0)
    rewarded = rewards[:, ::-1].cumsum(1)[:, ::-1][mask]
    wanted = {
        "reward_mean": scores.mean(),
        "reward_std": scores.std(ddof=1),
        "kl_sequence_mean": d.sum(1).mean(),
        "entropy_mean": scored.entropy.double().numpy()[mask].mean(),
        "response_length_mean": mask.sum(1).mean(),
        "explained_variance": 1 - ((returns - values) ** 2).mean() / returns.var(),
        "value_error_rms": np.sqrt(((rewarded - values) ** 2).mean()),
        "return_rms": np.sqrt((rewarded**2).mean()),
    }
    limit = gamma(4 * mask.size, FP64)
    for name, value in wanted.items():
        assert line[name] == pytest.approx(float(value), rel=limit, abs=limit), name


@pytest.mark.parametrize("epochs", [1, 2])
def test_figures_of_the_updates_are_means_and_extremes_over_the_minibatches(epochs: int) -> None:
    changes: dict[str, Any] = {"epochs": epochs, "learning_rate": 0.02}
    with opened("fp32_baseline", **changes) as run:
        found = update(run.models, run.weights, experience_of(run), run.settings, 0)
    with opened("fp32_baseline", **changes) as run:
        line = encode(ppo_step(run))
    count = 2 * epochs
    ratios = found.ratios
    assert line["updates"] == len(ratios) == len(found.gradient_norms) == count
    assert line["policy_loss"] == sum(found.policy_losses) / count
    assert line["value_loss"] == sum(found.value_losses) / count
    assert line["gradient_norm"] == sum(found.gradient_norms) / count
    assert line["clip_frac"] == sum(r.clip_frac for r in ratios) / count > 0
    assert line["approx_kl"] == sum(r.approx_kl for r in ratios) / count > 0
    assert line["log_ratio_smallest"] == min(r.smallest_log_ratio for r in ratios) < 0
    assert line["log_ratio_largest"] == max(r.largest_log_ratio for r in ratios) > 0
    assert line["ratio_overflows"] == line["skipped_updates"] == 0
    assert line["values_unchanged_frac"] == found.stagnant / found.watched


def test_adaptive_coefficient_follows_the_kl_and_never_dies() -> None:
    with opened("fp32_baseline", target_kl=0.5, kl_horizon=4) as run:
        for _ in range(2):
            used = run.kl_coefficient
            line = encode(ppo_step(run))
            assert line["kl_coefficient"] == used
            wanted = update_kl_coefficient(used, line["kl_sequence_mean"], 0.5, 4, 4)
            assert run.kl_coefficient == wanted != used
        run.kl_coefficient = SMALLEST_COEFFICIENT
        ppo_step(run)
        assert run.kl_coefficient == SMALLEST_COEFFICIENT, "0 could not grow again"


def test_share_of_moved_weights_is_that_of_the_copy_that_computes() -> None:
    """A learning rate of 1e-5 moves every FP32 weight and hardly a bf16 one."""
    moved = []
    for name in ("fp32_baseline", "bf16_pure"):
        with opened(name, learning_rate=1e-5) as run:
            before = run.weights.low.clone()
            line = encode(ppo_step(run))
            assert line["weights_moved_frac"] == float((run.weights.low != before).double().mean())
            moved.append(line["weights_moved_frac"])
    assert moved[0] > 0.5 > 0.1 > moved[1] > 0
