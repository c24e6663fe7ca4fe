"""The H2 study on a tiny random reward model: controls that can fail, faults that show."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from precision_lib.faults import plant
from precision_lib.forensics.evidence import H2Evidence
from precision_lib.forensics.h2 import families, operating_point
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.h2.forwards import WIDE_HEAD, RewardScored
from precision_lib.forensics.h2.rewards import StoringLaw
from precision_lib.forensics.h2.study import H2Study
from precision_lib.forensics.observed_format import observed_format
from precision_lib.forensics.statistics import NothingComparedError
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.metrics import rewards as h2
from precision_lib.record.codec import encode
from tests.unit.forensics.small_h2 import (
    PROMPTS,
    SAMPLES,
    SEQUENCES,
    SHARDS,
    change_scores,
    clean,
    freeze,
    opened,
    shards,
    with_changed_models,
)

PURE, REFERENCE_RUN = get_configuration("bf16_pure"), get_configuration("fp32_baseline")
PROMOTED, DEMOTED = get_configuration("bf16_fp32_reward"), get_configuration("fp32_bf16_reward")
HALF = replace(PURE, name="half", reward="fp16")


@pytest.fixture(autouse=True)
def few_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """The families have tests of their own; here a few groups of each will do."""
    monkeypatch.setattr(families, "GROUPS", 16)


def damage(study: H2Study, configuration: PrecisionConfig) -> float:
    return study.cell(configuration).metrics["advantage_rms_error"].value


# Cells


def test_a_cell_holds_every_metric_over_every_sequence() -> None:
    cell = clean().cell(PURE)
    assert cell.hypothesis == "H2"
    assert set(cell.metrics) == {*H2.metrics, "batch_variance"}
    assert cell.metrics["advantage_rms_error"].n == SEQUENCES
    assert cell.metrics["reward_kendall_tau"].n == SEQUENCES * (SAMPLES - 1) // 2
    assert cell.metrics["advantage_rms_error"].low > 0
    assert clean().cell(PURE).metrics is cell.metrics, "computed once"


def test_evidence_is_strict_json() -> None:
    for configuration in (PURE, REFERENCE_RUN):
        json.dumps(encode(clean().cell(configuration)), allow_nan=False)
    json.dumps(encode(clean().verdict()) | clean().context(), allow_nan=False)


def test_cells_of_one_reward_format_are_the_same_measurement() -> None:
    """Policy, reference, value and KL have no part in H2."""
    assert clean().cell(PURE).metrics == clean().cell(DEMOTED).metrics
    assert clean().cell(PROMOTED).metrics == clean().cell(REFERENCE_RUN).metrics


def test_the_golden_path_is_measured_against_the_exact_model() -> None:
    """Above 0, or FP32 would have been compared with itself; and far below bf16."""
    golden = clean().cell(REFERENCE_RUN)
    assert (golden.evidence.measured_against, golden.verdict) == ("fp64", "healthy")
    assert 0 < damage(clean(), REFERENCE_RUN) < damage(clean(), PURE) / 1000
    assert clean().cell(PURE).evidence.measured_against == "fp32"


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp32", "fp64"])
def test_the_reward_alone_has_an_observed_format(fmt: str) -> None:
    observed = clean().cell(replace(PURE, name=fmt, reward=fmt)).evidence.observed_formats
    assert observed == dict.fromkeys(("policy", "reference", "value", "kl")) | {"reward": fmt}


def test_each_forward_runs_once() -> None:
    """bf16: first, again, rebatched, wide head; FP32: the same four; the exact model."""
    calls: list[None] = []
    study = opened()
    study.forwards.scorer.progress = lambda: calls.append(None)
    for configuration in (PURE, REFERENCE_RUN, PROMOTED, DEMOTED):
        study.cell(configuration)
    study.verdict()
    study.verdict()
    assert len(calls) == 4 + 4 + 1


def test_groups_may_have_different_sizes() -> None:
    """A prompt that was drawn in two shards is one group of 8."""
    study = opened([*shards(), replace(shards()[0], rewards=shards()[0].rewards.clone())])
    sizes = torch.bincount(study.groups).tolist()
    assert sizes == [8] * PROMPTS + [4] * (SHARDS - 1) * PROMPTS
    assert study.cell(PURE).metrics["advantage_rms_error"].n == 64


# Causes


def test_causes_are_kept_apart() -> None:
    """Storing alone is the cast of the golden scores; a wide head leaves no grid on the scores."""
    causes = clean().causes("bf16")
    stored = h2.group_sums(clean().golden.bfloat16(), clean().golden, clean().groups)
    by_hand = H2.metrics["advantage_rms_error"].of(stored)
    assert causes["stored_only"]["advantage_rms_error"].value == by_hand
    both = clean().cell(PURE).metrics["advantage_rms_error"]
    assert causes["both"]["advantage_rms_error"] == both
    wide = clean().forwards.scored("bf16", WIDE_HEAD)
    assert wide.parameters == "bf16+fp32"
    assert observed_format(wide.scores) == "fp32"
    assert causes["forward_only"]["advantage_rms_error"].value > 0


def test_a_wide_head_is_taken_off_again() -> None:
    study = opened()
    study.forwards.scored("bf16", WIDE_HEAD)
    usual = study.forwards.scored("bf16")
    assert (usual.scores.dtype, usual.parameters) == (torch.bfloat16, "bf16")


def test_an_exact_forward_leaves_storing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bf16 hidden states are as good as golden, both = stored only."""
    study = opened()
    scored = study.forwards.scored

    def cast_at_the_end(fmt: str, run: str = "first") -> RewardScored:
        scores = study.golden if run == WIDE_HEAD else study.golden.bfloat16()
        return RewardScored(scores, "bf16") if fmt == "bf16" else scored(fmt, run)

    monkeypatch.setattr(study.forwards, "scored", cast_at_the_end)
    causes = study.causes("bf16")
    assert causes["both"] == causes["stored_only"]
    assert causes["forward_only"]["advantage_rms_error"].value == 0


def test_native_point_of_known_rewards() -> None:
    """Two prompts: means 10 and -30, variances 1 and 9, so a spread of sqrt(5); bf16 step 2^-4."""
    golden = torch.tensor([9.0, 10, 11, -33, -30, -27])
    got = operating_point.native(golden, torch.tensor([0, 0, 0, 1, 1, 1]), "bf16")
    assert got.reward_mean == -10
    assert got.offset in (10, 30)  # the median of two is the lower
    assert abs(got.within_group_std - math.sqrt(5)) <= 4 * 2.0**-52
    assert abs(got.resolution_over_spread * got.within_group_std - 2.0**-4) <= 2.0**-52


def test_an_offset_reward_model_is_impaired_and_promotion_heals_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clean counterpart of a refutation: a score with an offset of 1,000 spreads.

    bf16 steps of 4 on a spread of about 1. The same study must then say ``supported``, with the
    damage in the stored score.
    """
    change_scores(monkeypatch, lambda scores, _: scores + 1000)
    study = opened([freeze(index) for index in range(SHARDS)])
    verdict = study.verdict()
    assert study.cell(PURE).verdict == study.cell(DEMOTED).verdict == "impaired"
    assert study.cell(PROMOTED).verdict == study.cell(REFERENCE_RUN).verdict == "healthy"
    assert verdict.verdict == "supported"
    assert verdict.contrasts["promotion_symptom_removed"].low > 0
    assert "beyond the law" in verdict.explanation
    assert study.storing("bf16") == StoringLaw(groups=0, of=SHARDS * PROMPTS)


def test_storing_the_real_scores_follows_the_law() -> None:
    """Within 4.5 standard errors; groups with steps of up to half their spread."""
    storing = clean().storing("bf16")
    assert storing.groups > SHARDS * PROMPTS // 2
    assert storing.z is not None
    assert abs(storing.z) < 4.5
    # Second order over first: at most (3K/4 - 3) / (K - 1) / 48, which is 0 for K = 4.
    assert storing.shortfall == 0


# Controls


def test_controls_are_null_on_a_healthy_study() -> None:
    control = clean().verdict().control
    assert control.is_null, control
    assert control.fp32_replay is not None
    assert control.exact_rewards is not None
    assert control.fp32_replay.n == SEQUENCES
    assert control.fp32_replay.stored_differs == 0
    assert not any(control.exact_rewards.squared_error.values())
    assert control.irrelevant_promotion_damage_removed == 0


def test_a_dropout_left_on_breaks_the_replay() -> None:
    def drop(model: Any, fmt: str) -> None:
        model.score.register_forward_pre_hook(
            lambda _, inputs: (torch.nn.functional.dropout(inputs[0], 0.1),)
        )

    study = with_changed_models(drop)
    replayed = operating_point.replay(study.forwards, study.golden)
    assert replayed.again_differs > 0
    assert not replayed.is_null


def test_forwards_that_do_not_repeat_break_the_irrelevant_control() -> None:
    calls = itertools.count()

    def restless(model: Any, fmt: str) -> None:
        if fmt == "bf16":
            model.score.weight.data.mul_(1 + next(calls) * 2.0**-6)

    verdict = with_changed_models(restless).verdict()
    assert verdict.control.irrelevant_promotion_damage_removed != 0
    assert verdict.verdict == "inconclusive"


def test_rewards_of_another_model_break_the_replay() -> None:
    """Stored scores that belong to other answers: shifted by one."""
    verdict = opened([replace(s, rewards=s.rewards.roll(1)) for s in shards()]).verdict()
    replayed = verdict.control.fp32_replay
    assert replayed is not None
    assert replayed.stored_distance > 0
    assert not replayed.is_null
    assert verdict.verdict == "inconclusive"


def test_stored_rewards_within_the_noise_of_fp32_are_accepted() -> None:
    """As from another device: one FP32 ulp away from this one's."""
    up = torch.tensor(torch.inf)
    study = opened([replace(s, rewards=torch.nextafter(s.rewards, up)) for s in shards()])
    replayed = operating_point.replay(study.forwards, study.golden)
    assert replayed.stored_differs == replayed.n
    assert replayed.is_null, replayed


def test_a_family_that_is_not_immune_breaks_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(families.FAMILIES[0], immune=True)
    monkeypatch.setattr(families, "FAMILIES", (wrong, *families.FAMILIES[1:]))
    assert not operating_point.immunity(0).is_null
    assert opened().verdict().verdict == "inconclusive"


def test_batch_variance_sees_a_score_that_depends_on_its_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet = opened().rebatched(REFERENCE_RUN).variance.value
    change_scores(monkeypatch, lambda x, tokens: x + x.square() * 2.0**-10 * len(tokens))
    assert opened().rebatched(REFERENCE_RUN).variance.value > max(100 * quiet, 0)


def test_scores_that_all_tie_in_one_batch_shape_have_a_batch_variance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their own advantages are 0: over those, the variance grew with the number of sequences."""
    study = opened()
    tied = torch.full_like(study.golden, 256.0).bfloat16()
    other = tied.clone()
    other[:: SAMPLES + 1] += 2
    runs = {"first": tied, "rebatched": other}
    monkeypatch.setattr(study, "scores", lambda _, run="first": runs[run])
    got = study.rebatched(PURE)
    assert 0 < got.shift <= got.variance.value <= 1


# Planted faults


def test_scores_rounded_before_they_are_returned_show_as_laundered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bf16 detour: the tensor says fp32, its values do not; and the replay control breaks."""
    shards()
    change_scores(monkeypatch, lambda scores, _: scores.bfloat16().to(scores.dtype))
    evidence = opened().cell(REFERENCE_RUN).shows(H2Evidence)
    assert evidence.observed_formats["reward"] == "bf16 in fp32+fp32"
    assert evidence.golden_observed_format == "fp32"
    assert evidence.fp32_replay is not None
    assert not evidence.fp32_replay.is_null
    frozen = opened([freeze(index) for index in range(SHARDS)])
    laundered = frozen.cell(REFERENCE_RUN).shows(H2Evidence)
    assert laundered.golden_observed_format == "bf16 in fp32"


@pytest.mark.parametrize(
    "fault",
    [
        *("group_statistics_in_rewards_dtype", "group_advantages_left_in_input_dtype"),
        *("statistics_in_input_dtype", "whitened_left_in_input_dtype"),
    ],
)
def test_statistics_in_the_rewards_format_miss_the_oracle(fault: str) -> None:
    """What ``test_statistics_match_the_oracle`` of the forensics asks, with the fault planted."""
    scores, groups = clean().scores("bf16"), clean().groups
    assert 0 < operating_point.statistics_over_bound(scores, groups) <= 1
    with plant(fault):
        assert operating_point.statistics_over_bound(scores, groups) > 1


def test_advantages_of_no_finite_score_are_not_compared() -> None:
    none, groups = torch.full((4,), torch.nan), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(NothingComparedError, match="no score is finite"):
        operating_point.statistics_over_bound(none, groups)


# Overflow


@pytest.mark.parametrize("every", [False, True])
def test_overflow_impairs_the_cell(every: bool) -> None:
    """fp16 scores beyond 65,504 are infinite; the cell says so instead of crashing."""

    def loud(model: Any, fmt: str) -> None:
        if fmt == "fp16":
            weight = model.score.weight.data
            model.score.weight.data = torch.full_like(weight, torch.inf) if every else weight * 1e5

    cell = with_changed_models(loud).cell(HALF)
    measured = set(cell.metrics) - {"batch_variance"}
    share = cell.metrics["reward_nonfinite_frac"].value
    assert cell.verdict == "impaired"
    assert share == 1 if every else 0 < share < 1
    assert measured == ({"reward_nonfinite_frac"} if every else set(H2.metrics))
    assert all(math.isfinite(m.value) for m in cell.metrics.values())


def test_inputs_that_cannot_be_judged_are_refused() -> None:
    alone = replace(shards()[0], prompt_ids=torch.arange(16))
    for frozen, message in (
        ([], "no trajectories"),
        (shards()[:1], "4 prompts: an interval over prompts needs at least 8"),
        ([alone], "16 of 16 prompts have one sequence only"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(frozen)


def test_a_configuration_of_a_users_own_is_measured() -> None:
    assert damage(clean(), replace(REFERENCE_RUN, name="own", reward="fp16")) > 0
