"""The H2 study on a tiny random reward model: controls that can fail, faults that show."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.faults import plant
from precision_lib.forensics.h2 import families as families
from precision_lib.forensics.h2 import families as reward_families
from precision_lib.forensics.h2 import forwards as h2_forwards
from precision_lib.forensics.h2 import operating_point as operating_point
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.h2.forwards import WIDE_HEAD
from precision_lib.forensics.h2.study import H2Study, open_h2_study
from precision_lib.forensics.observed_format import observed_format
from precision_lib.forensics.statistics import NothingComparedError
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.metrics import rewards as h2
from precision_lib.models.reward_model import RewardModel, score_tokens
from precision_lib.runtime import deterministic
from precision_lib.scoring.forced import forced_rewards
from precision_lib.scoring.micro import Micro
from precision_lib.trajectories.store import Trajectories

PURE, REFERENCE_RUN = get_configuration("bf16_pure"), get_configuration("fp32_baseline")
PROMOTED, DEMOTED = get_configuration("bf16_fp32_reward"), get_configuration("fp32_bf16_reward")
HALF = replace(PURE, name="half", reward="fp16")
SHARDS, PROMPTS, SAMPLES, LENGTH = 3, 4, 4, 12
#: As the forwards call it.
SCORE_TOKENS = "precision_lib.scoring.forced.score_tokens"


@pytest.fixture(scope="module")
def reward() -> RewardModel:
    """A random Llama of two layers with a score head."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    with deterministic(0):
        model = transformers.LlamaForSequenceClassification(config)
    return RewardModel(model.eval().requires_grad_(False), None, "tiny", "0" * 64)


def freeze(reward: RewardModel, index: int) -> Trajectories:
    """Random tokens of random lengths, scored as a freeze does."""
    count, generator = PROMPTS * SAMPLES, torch.Generator().manual_seed(index)
    tokens = torch.randint(1, 64, (count, LENGTH), generator=generator)
    lengths = torch.randint(5, LENGTH + 1, (count,), generator=generator)
    tokens = torch.where(torch.arange(LENGTH) < lengths[:, None], tokens, 0)
    with deterministic():
        scores, _ = forced_rewards(reward.model, tokens, lengths, Micro(count, torch.arange(count)))
    nothing = torch.zeros(count, LENGTH - 1)
    return Trajectories(
        tokens=tokens,
        prompt_lengths=torch.full((count,), 3),
        response_lengths=lengths - 3,
        prompt_ids=(torch.arange(PROMPTS) + 100 * index).repeat_interleave(SAMPLES),
        reward_tokens=tokens,
        reward_lengths=lengths,
        logprobs=nothing,
        ref_logprobs=nothing,
        values=nothing,
        rewards=scores,
    )


@pytest.fixture(scope="module")
def shards(reward: RewardModel) -> list[Trajectories]:
    return [freeze(reward, index) for index in range(SHARDS)]


@pytest.fixture
def study(reward: RewardModel, shards: list[Trajectories]) -> H2Study:
    return opened(reward, shards)


@pytest.fixture(scope="module")
def clean(reward: RewardModel, shards: list[Trajectories]) -> H2Study:
    """A study that no test changes."""
    return opened(reward, shards)


@pytest.fixture(autouse=True)
def few_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """The families have tests of their own; here a few groups of each will do."""
    monkeypatch.setattr(reward_families, "GROUPS", 16)


def opened(reward: RewardModel, shards: list[Trajectories]) -> H2Study:
    return open_h2_study(reward, shards, 0)


def change_forward(study: H2Study, change: Callable[[Any, str], None]) -> None:
    """Have ``change`` applied to the model of every forward."""
    build = study.forwards.scorer.model

    def changed(weights: Any, copy: int = 0) -> Any:
        model = build(weights, copy)
        change(model, weights.fmt)
        return model

    study.forwards.scorer.model = changed  # type: ignore[method-assign]


# Cells


def test_a_cell_holds_every_metric_over_every_sequence(clean: H2Study) -> None:
    cell = clean.cell(PURE)
    assert cell.hypothesis == "H2"
    assert set(cell.metrics) == {*H2.metrics, "batch_variance"}
    sequences = SHARDS * PROMPTS * SAMPLES
    pairs = SHARDS * PROMPTS * SAMPLES * (SAMPLES - 1) // 2
    assert cell.metrics["advantage_rms_error"].n == sequences
    assert cell.metrics["reward_kendall_tau"].n == pairs
    assert cell.metrics["advantage_rms_error"].low > 0
    assert clean.cell(PURE).metrics is cell.metrics, "computed once"


def test_evidence_is_strict_json(clean: H2Study) -> None:
    import json

    for configuration in (PURE, REFERENCE_RUN):
        json.dumps(clean.cell(configuration).as_json(), allow_nan=False)
    json.dumps(clean.verdict().as_json() | clean.context(), allow_nan=False)


def test_cells_of_one_reward_format_are_the_same_measurement(clean: H2Study) -> None:
    """Policy, reference, value and KL have no part in H2."""
    assert clean.cell(PURE).metrics == clean.cell(DEMOTED).metrics
    assert clean.cell(PROMOTED).metrics == clean.cell(REFERENCE_RUN).metrics


def test_the_golden_path_is_measured_against_the_exact_model(clean: H2Study) -> None:
    """Above 0, or FP32 would have been compared with itself; and far below bf16."""
    cell = clean.cell(REFERENCE_RUN)
    assert cell.evidence["measured_against"] == "fp64"
    assert cell.verdict == "healthy"
    assert cell.metrics["advantage_rms_error"].value > 0
    bf16 = clean.cell(PURE).metrics["advantage_rms_error"].value
    assert cell.metrics["advantage_rms_error"].value < bf16 / 1000
    assert clean.cell(PURE).evidence["measured_against"] == "fp32"


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp32", "fp64"])
def test_observed_formats(clean: H2Study, fmt: str) -> None:
    configuration = replace(PURE, name=fmt, reward=fmt)
    observed = clean.cell(configuration).evidence["observed_formats"]
    assert observed == {
        "policy": None,
        "reference": None,
        "reward": fmt,
        "value": None,
        "kl": None,
    }


def test_each_forward_runs_once(reward: RewardModel, shards: list[Trajectories]) -> None:
    """bf16: first, again, rebatched, wide head; FP32: the same four; the exact model."""
    calls: list[None] = []
    study = opened(reward, shards)
    study.forwards.scorer.progress = lambda: calls.append(None)
    for configuration in (PURE, REFERENCE_RUN, PROMOTED, DEMOTED):
        study.cell(configuration)
    study.verdict()
    study.verdict()
    assert len(calls) == 4 + 4 + 1


def test_groups_may_have_different_sizes(reward: RewardModel, shards: list[Trajectories]) -> None:
    """A prompt that was drawn in two shards is one group of 8."""
    merged = [*shards, replace(shards[0], rewards=shards[0].rewards.clone())]
    sizes = torch.bincount(opened(reward, merged).groups).tolist()
    assert sizes == [8] * PROMPTS + [4] * (SHARDS - 1) * PROMPTS
    assert opened(reward, merged).cell(PURE).metrics["advantage_rms_error"].n == 64


# Causes


def test_causes_are_kept_apart(clean: H2Study) -> None:
    """Storing alone is the cast of the golden scores; a wide head leaves no grid on the scores."""
    causes = clean.causes("bf16")
    stored = h2.group_sums(clean.golden.bfloat16(), clean.golden, clean.groups)
    assert causes["stored_only"]["advantage_rms_error"]["value"] == H2.metrics[
        "advantage_rms_error"
    ].of(stored)
    assert causes["both"]["advantage_rms_error"] == (
        clean.cell(PURE).metrics["advantage_rms_error"].as_json()
    )
    wide = clean.forwards.scored("bf16", WIDE_HEAD)
    assert wide.parameters == "bf16+fp32"
    assert observed_format(wide.scores) == "fp32"
    assert causes["forward_only"]["advantage_rms_error"]["value"] > 0


def test_a_wide_head_is_taken_off_again(study: H2Study) -> None:
    study.forwards.scored("bf16", WIDE_HEAD)
    assert study.forwards.scored("bf16").scores.dtype == torch.bfloat16
    assert study.forwards.scored("bf16").parameters == "bf16"


def test_an_exact_forward_leaves_storing_alone(
    study: H2Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where bf16 hidden states are as good as golden, both = stored only."""
    scored = study.forwards.scored

    def cast_at_the_end(fmt: str, run: str = "first") -> Any:
        if fmt != "bf16":
            return scored(fmt, run)
        scores = study.golden if run == h2_forwards.WIDE_HEAD else study.golden.bfloat16()
        return h2_forwards.RewardScored(scores, "bf16")

    monkeypatch.setattr(study.forwards, "scored", cast_at_the_end)
    causes = study.causes("bf16")
    assert causes["both"] == causes["stored_only"]
    assert causes["forward_only"]["advantage_rms_error"]["value"] == 0


def test_native_point_of_known_rewards() -> None:
    """Two prompts: means 10 and -30, variances 1 and 9, so a spread of sqrt(5); bf16 step 2^-4."""
    golden = torch.tensor([9.0, 10, 11, -33, -30, -27])
    got = operating_point.native(golden, torch.tensor([0, 0, 0, 1, 1, 1]), "bf16")
    assert got["reward_mean"] == -10
    assert got["offset"] in (10, 30)  # the median of two is the lower
    assert abs(got["within_group_std"] - math.sqrt(5)) <= 4 * 2.0**-52
    assert abs(got["resolution_over_spread"] * got["within_group_std"] - 2.0**-4) <= 2.0**-52


def test_an_offset_reward_model_is_impaired_and_promotion_heals_it(
    reward: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clean counterpart of a refutation: a score with an offset of 1,000 spreads.

    bf16 steps of 4 on a spread of about 1. The same study must then say ``supported``, with the
    damage in the stored score.
    """

    def offset(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
        return score_tokens(model, tokens, lengths) + 1000

    monkeypatch.setattr(SCORE_TOKENS, offset)
    study = opened(reward, [freeze(reward, index) for index in range(SHARDS)])
    verdict = study.verdict()
    assert study.cell(PURE).verdict == study.cell(DEMOTED).verdict == "impaired"
    assert study.cell(PROMOTED).verdict == study.cell(REFERENCE_RUN).verdict == "healthy"
    assert verdict.verdict == "supported"
    assert verdict.contrasts["promotion_symptom_removed"].low > 0
    assert "beyond the law" in verdict.explanation
    assert study.storing("bf16") == {
        "groups": 0,
        "of": SHARDS * PROMPTS,
        "measured": None,
        "predicted": None,
        "shortfall": None,
        "z": None,
    }


def test_storing_the_real_scores_follows_the_law(clean: H2Study) -> None:
    """Within 4.5 standard errors; groups with steps of up to half their spread."""
    found = clean.storing("bf16")
    assert found["groups"] > SHARDS * PROMPTS // 2
    assert abs(found["z"]) < 4.5
    # Second order over first: at most (3K/4 - 3) / (K - 1) / 48, which is 0 for K = 4.
    assert found["shortfall"] == 0


# Controls


def test_controls_are_null_on_a_healthy_study(clean: H2Study) -> None:
    control = clean.verdict().control
    assert control["is_null"], control
    assert control["fp32_replay"]["n"] == SHARDS * PROMPTS * SAMPLES
    assert control["fp32_replay"]["stored_differs"] == 0
    assert not any(control["exact_rewards"]["squared_error"].values())
    assert control["irrelevant_promotion_damage_removed"] == 0


def test_a_dropout_left_on_breaks_the_replay(study: H2Study) -> None:
    def drop(model: Any, fmt: str) -> None:
        model.score.register_forward_pre_hook(
            lambda _, inputs: (torch.nn.functional.dropout(inputs[0], 0.1),)
        )

    change_forward(study, drop)
    found = operating_point.replay(study.forwards, study.golden)
    assert found["again_differs"] > 0
    assert not found["is_null"]


def test_forwards_that_do_not_repeat_break_the_irrelevant_control(study: H2Study) -> None:
    calls = itertools.count()

    def restless(model: Any, fmt: str) -> None:
        if fmt == "bf16":
            model.score.weight.data.mul_(1 + next(calls) * 2.0**-6)

    change_forward(study, restless)
    verdict = study.verdict()
    assert verdict.control["irrelevant_promotion_damage_removed"] != 0
    assert verdict.verdict == "inconclusive"


def test_rewards_of_another_model_break_the_replay(
    reward: RewardModel, shards: list[Trajectories]
) -> None:
    """Stored scores that belong to other answers: shifted by one."""
    shifted = [replace(s, rewards=s.rewards.roll(1)) for s in shards]
    verdict = opened(reward, shifted).verdict()
    assert verdict.control["fp32_replay"]["stored_distance"] > 0
    assert not verdict.control["fp32_replay"]["is_null"]
    assert verdict.verdict == "inconclusive"


def test_stored_rewards_within_the_noise_of_fp32_are_accepted(
    reward: RewardModel, shards: list[Trajectories]
) -> None:
    """As from another device: one FP32 ulp away from this one's."""
    up = torch.tensor(torch.inf)
    moved = [replace(s, rewards=torch.nextafter(s.rewards, up)) for s in shards]
    study = opened(reward, moved)
    found = operating_point.replay(study.forwards, study.golden)
    assert found["stored_differs"] == found["n"]
    assert found["is_null"], found


def test_a_family_that_is_not_immune_breaks_the_control(
    study: H2Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(families.FAMILIES[0], immune=True)
    monkeypatch.setattr(families, "FAMILIES", (wrong, *families.FAMILIES[1:]))
    assert not operating_point.immunity(0)["is_null"]
    assert study.verdict().verdict == "inconclusive"


def test_batch_variance_sees_a_score_that_depends_on_its_batch(
    reward: RewardModel, shards: list[Trajectories], monkeypatch: pytest.MonkeyPatch
) -> None:

    quiet = opened(reward, shards).rebatched(REFERENCE_RUN).variance.value

    def batch_dependent(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
        scores = score_tokens(model, tokens, lengths)
        return scores + scores.square() * 2.0**-10 * len(tokens)

    monkeypatch.setattr(SCORE_TOKENS, batch_dependent)
    loud = opened(reward, shards).rebatched(REFERENCE_RUN).variance.value
    assert loud > 100 * quiet
    assert loud > 0


def test_scores_that_all_tie_in_one_batch_shape_have_a_batch_variance(
    reward: RewardModel, shards: list[Trajectories], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own advantages are 0: over those, the variance grew with the number of sequences."""
    study = opened(reward, shards)
    tied = torch.full_like(study.golden, 256.0).bfloat16()
    other = tied.clone()
    other[:: SAMPLES + 1] += 2
    monkeypatch.setattr(
        study, "scores", lambda _, run="first": other if run == "rebatched" else tied
    )
    got = study.rebatched(PURE)
    assert 0 < got.shift <= got.variance.value <= 1


# Planted faults


def test_scores_rounded_before_they_are_returned_show_as_laundered(
    reward: RewardModel, shards: list[Trajectories], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bf16 detour: the tensor says fp32, its values do not; and the replay control breaks."""

    def rounded(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
        scores = score_tokens(model, tokens, lengths)
        return scores.bfloat16().to(scores.dtype)

    monkeypatch.setattr(SCORE_TOKENS, rounded)
    study = opened(reward, shards)
    evidence = study.cell(REFERENCE_RUN).evidence
    assert evidence["observed_formats"]["reward"] == "bf16 in fp32+fp32"
    assert evidence["golden_observed_format"] == "fp32"
    assert not evidence["fp32_replay"]["is_null"]
    frozen = opened(reward, [freeze(reward, index) for index in range(SHARDS)])
    assert frozen.cell(REFERENCE_RUN).evidence["golden_observed_format"] == "bf16 in fp32"


@pytest.mark.parametrize(
    "fault",
    [
        "group_statistics_in_rewards_dtype",
        "group_advantages_left_in_input_dtype",
        "statistics_in_input_dtype",
        "whitened_left_in_input_dtype",
    ],
)
def test_statistics_in_the_rewards_format_miss_the_oracle(clean: H2Study, fault: str) -> None:
    """What ``test_statistics_match_the_oracle`` of the forensics asks, with the fault planted."""
    scores = clean.scores("bf16")
    assert 0 < operating_point.statistics_over_bound(scores, clean.groups) <= 1
    with plant(fault):
        assert operating_point.statistics_over_bound(scores, clean.groups) > 1


def test_group_statistics_in_bf16_break_the_immunity_of_binary_rewards() -> None:
    """A mean of 3/8 is exact in bf16, one of 3/7 is not: 0 and 1 are no longer without error."""
    assert operating_point.immunity(0)["is_null"]
    with plant("group_statistics_in_rewards_dtype"):
        assert not operating_point.immunity(0)["is_null"]


def test_advantages_of_no_finite_score_are_not_compared() -> None:
    with pytest.raises(NothingComparedError, match="no score is finite"):
        operating_point.statistics_over_bound(
            torch.full((4,), torch.nan), torch.zeros(4, dtype=torch.int64)
        )


# Overflow


def test_overflow_of_some_scores_impairs_the_cell(study: H2Study) -> None:
    """fp16 scores beyond 65,504 are infinite; the cell says so instead of crashing."""

    def loud(model: Any, fmt: str) -> None:
        if fmt == "fp16":
            model.score.weight.data.mul_(3e4)

    change_forward(study, loud)
    cell = study.cell(HALF)
    assert cell.verdict == "impaired"
    assert 0 < cell.metrics["reward_nonfinite_frac"].value < 1
    assert set(cell.metrics) == {*H2.metrics, "batch_variance"}
    assert all(math.isfinite(m.value) for m in cell.metrics.values())


def test_overflow_of_all_scores_impairs_the_cell(study: H2Study) -> None:
    def silent(model: Any, fmt: str) -> None:
        if fmt == "fp16":
            model.score.weight.data = torch.full_like(model.score.weight, torch.inf)

    change_forward(study, silent)
    cell = study.cell(HALF)
    assert cell.verdict == "impaired"
    assert cell.metrics["reward_nonfinite_frac"].value == 1
    assert set(cell.metrics) == {"reward_nonfinite_frac", "batch_variance"}


# Inputs


def test_inputs_that_cannot_be_judged_are_refused(
    reward: RewardModel, shards: list[Trajectories]
) -> None:
    with pytest.raises(ValueError, match="no trajectories"):
        opened(reward, [])
    with pytest.raises(ValueError, match="4 prompts: an interval over prompts needs at least 8"):
        opened(reward, shards[:1])
    alone = [replace(s, prompt_ids=torch.arange(16)) for s in shards[:1]]
    with pytest.raises(ValueError, match="16 of 16 prompts have one sequence only"):
        opened(reward, alone)


def test_a_configuration_of_a_users_own_is_measured(clean: H2Study) -> None:
    own = PrecisionConfig("own", "fp32", "fp32", "fp16", "fp32", "fp32")
    cell = clean.cell(own)
    assert cell.configuration == "own"
    assert cell.metrics["advantage_rms_error"].value > 0
