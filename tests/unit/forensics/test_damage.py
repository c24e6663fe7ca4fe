"""The gradient of a whole step: what it is made of, planted faults that must turn it."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from precision_lib.forensics.damage import step as steps
from precision_lib.forensics.damage.figures import products
from precision_lib.forensics.damage.measure import DamageStudy, open_damage
from precision_lib.forensics.damage.step import Inputs, Loss, Step
from precision_lib.forensics.damage.work import TWIN, judged, policy_of
from precision_lib.forensics.policy_shift import OPERATING_KL
from precision_lib.matrix import (
    MATRIX,
    PrecisionConfig,
    all_configurations,
    get_configuration,
)
from precision_lib.metrics.measure import Array
from precision_lib.phases.main_job import MainJob
from precision_lib.ppo.losses import policy_loss
from precision_lib.record.codec import decode, encode
from precision_lib.record.record import Record
from precision_lib.record.recorder import Recorder
from precision_lib.reporting import sections
from precision_lib.reporting.gate import pull_request
from precision_lib.reporting.table import summary
from tests.unit.small_pipelines import random_checkpoint, random_pipeline
from tools import findings

if TYPE_CHECKING:
    from precision_lib.forensics.budget import Budget

PURE, REFERENCE = get_configuration("bf16_pure"), get_configuration("fp32_baseline")


def small_budget() -> "Budget":
    from precision_lib.forensics.budget import budget

    quick = budget(quick=True)
    return replace(quick, freeze=replace(quick.freeze, max_new_tokens=8)).changed(
        "H1", seq_lengths=(8,), target_kls=(OPERATING_KL, 1e-2)
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> MainJob:
    path = tmp_path_factory.mktemp("damage") / "report.json"
    return MainJob(random_pipeline(), small_budget(), Recorder(path, MATRIX))


@pytest.fixture(scope="module")
def study(job: MainJob) -> DamageStudy:
    studies = {name: job.study(name) for name in ("H1", "H2")}
    return open_damage(job.pipeline, job.frozen, studies, MATRIX, 6)


@pytest.fixture(scope="module")
def step(study: DamageStudy) -> Step:
    return study.step


@pytest.fixture(scope="module")
def exact(step: Step) -> Inputs:
    return step.inputs(REFERENCE)


@pytest.fixture(scope="module")
def truth(step: Step, exact: Inputs) -> Array:
    return terms(step, exact)


def terms(step: Step, inputs: Inputs, policy: str = "fp32") -> Array:
    return step.gradients({"": Loss(policy, "fp32", inputs)})[""].astype(np.float64)


def lost(other: Array, truth: Array) -> float:
    return products(other, truth).lost()


def test_the_terms_add_up_to_the_gradient_of_the_surrogate(
    step: Step, exact: Inputs, truth: Array
) -> None:
    """The same loss by a forward of another width, through the function that H6 uses."""
    from precision_lib.forensics.h6.updates import Batch, policy_gradient

    width = max(s.tokens.shape[1] for s in step.sequences)
    count = len(step.sequences)
    batch = Batch(
        torch.zeros(count, width, dtype=torch.int64),
        *(torch.zeros(count, width - 1, dtype=d) for d in (torch.bool, *2 * (torch.float32,))),
    )
    for row, s in enumerate(step.sequences):
        length = s.tokens.shape[1]
        batch.tokens[row, :length] = s.tokens
        response = slice(s.prompt - 1, length - 1)
        batch.mask[row, response] = True
        for name in ("logprobs", "advantages"):
            own = getattr(exact, name)[row, : length - s.prompt]
            getattr(batch, name)[row, response] = own
    with step._model("policy", "fp32") as model:
        model.requires_grad_(True)
        whole = torch.cat([g.flatten() for g in policy_gradient(model, batch)]).double().numpy()
    assert truth.shape[1] == len(whole)  # small enough for every coordinate
    assert np.abs(truth.sum(0) - whole).max() < 1e-5 * np.abs(whole).max()


def test_one_rounding_of_the_weights_is_seen_and_is_no_more(
    step: Step, exact: Inputs, truth: Array
) -> None:
    """2^-24 of every weight: the square of some 1e-6, where bf16 has that of some 1e-2."""
    twin = lost(terms(step, exact, TWIN), truth)
    bf16 = lost(terms(step, exact, "bf16"), truth)
    assert lost(terms(step, exact), truth) == 0
    assert 0 < twin < 1e-10 < 1e-6 < bf16 < 0.01


def _one_sign_flipped(inputs: Inputs) -> Inputs:
    advantages = inputs.advantages.clone()
    advantages[0] *= -1
    return replace(inputs, advantages=advantages)


def _mask_shifted(inputs: Inputs) -> Inputs:
    mask = inputs.mask.clone()
    mask[:, 0] = False
    return replace(inputs, mask=mask)


def _tokens_shifted(inputs: Inputs) -> Inputs:
    return replace(inputs, advantages=inputs.advantages.roll(1, 0))


def _old_log_probs_of_another_policy(inputs: Inputs) -> Inputs:
    return replace(inputs, logprobs=inputs.logprobs + torch.linspace(-1, 1, inputs.mask.shape[1]))


@pytest.mark.parametrize(
    "fault",
    [_one_sign_flipped, _mask_shifted, _tokens_shifted, _old_log_probs_of_another_policy],
)
def test_a_planted_fault_turns_the_gradient_more_than_bf16(
    fault: "object", step: Step, exact: Inputs, truth: Array
) -> None:
    assert callable(fault)
    clean = lost(terms(step, exact, "bf16"), truth)
    for policy in ("fp32", "bf16"):
        assert lost(terms(step, fault(exact), policy), truth) > max(0.01, 10 * clean)


def test_some_coordinates_say_what_all_do(
    step: Step, exact: Inputs, truth: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lost(terms(step, exact, "bf16"), truth)
    monkeypatch.setattr(steps, "COORDINATES", truth.shape[1] // 4)
    monkeypatch.setattr(steps, "_SMALL", 64)
    fewer = terms(step, exact)
    assert fewer.shape[1] < truth.shape[1] / 3
    assert np.square(fewer.sum(0)).sum() == pytest.approx(np.square(truth.sum(0)).sum(), rel=0.2)
    assert lost(terms(step, exact, "bf16"), fewer) == pytest.approx(whole, rel=0.2)


def test_ratios_are_bitwise_one_before_the_step(
    study: DamageStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old log-probs are those of the forward that the gradient is taken through, in each loss
    of every configuration, and in their format."""
    formats: list[torch.dtype] = []

    def watched(own: torch.Tensor, old: torch.Tensor, *rest: Any) -> torch.Tensor:
        assert torch.equal(own.detach(), old)
        formats.append(own.dtype)
        return policy_loss(own, old, *rest)

    monkeypatch.setattr(steps, "policy_loss", watched)
    study.measure()
    # 7 configurations, FP32 itself, and bf16 with exact inputs; 4 have their KL in bf16.
    count = len(study.step.sequences)
    assert formats.count(torch.bfloat16) == 4 * count
    assert formats.count(torch.float32) == 5 * count


def test_a_head_of_another_format_is_compared_with_the_tied_matrix(
    step: Step, exact: Inputs, truth: Array
) -> None:
    head = replace(PURE, name="head", lm_head="fp32").forward_format("policy")
    bf16 = lost(terms(step, exact, "bf16"), truth)
    assert 0 < lost(terms(step, exact, head), truth) < 2 * bf16


def test_the_record_holds_a_row_for_each_configuration(job: MainJob) -> None:
    damage = job.pipeline_damage()
    assert job.pipeline_damage() is damage
    assert [s.configuration for s in damage.steps] == [c.name for c in MATRIX]
    record = job.recorder.record()
    assert decode(Record, encode(record)).pipeline_damage == damage
    assert encode(replace(record, pipeline_damage=None)).get("pipeline_damage") is None
    assert (damage.of("bf16_pure"), damage.of("mine")) == (damage.steps[0], None)
    reference = damage.steps[-1]
    assert reference.exact_inputs_cosine is None
    assert reference.clip_change_frac.value == 0
    floor, pure = reference.gradient_cosine, damage.steps[0].gradient_cosine
    assert floor is not None
    assert pure is not None
    assert 0 < 1 - floor.value < 1e-10 < 1e-6 < 1 - pure.value
    promoted = damage.of("bf16_fp32_reward")
    assert promoted is not None
    assert promoted.rank_inversion_frac is not None
    assert promoted.rank_inversion_frac.value == 0
    assert damage.steps[0].clip_change_frac.value > 0


def test_a_step_that_is_not_finite_is_skipped(study: DamageStudy, job: MainJob) -> None:
    scores = {fmt: torch.full_like(x, torch.inf) for fmt, x in study.step.scores.items()}
    scores["fp32"] = study.step.scores["fp32"]
    broken = replace(study, step=replace(study.step, scores=scores))
    damage = broken.measure()
    pure, reference = damage.of("bf16_pure"), damage.of("fp32_baseline")
    assert pure is not None
    assert reference is not None
    assert (pure.gradient_cosine, pure.advantage_rms_error, pure.expected_cosine) == (None,) * 3
    assert pure.exact_inputs_cosine is not None
    assert reference.gradient_cosine is not None


def test_advantages_are_made_of_the_stored_rewards_by_hand(
    step: Step, exact: Inputs, job: MainJob
) -> None:
    """FP32: the reward at the last token, the penalty at each, lambda = 0.95, one mean and std."""
    stored = torch.cat([shard.rewards for shard in job.frozen.shards])
    (own, values), (others, _) = step._scored("policy", "fp32"), step._scored("reference", "fp32")
    raw = []
    for row, sequence in enumerate(step.sequences):
        count = sequence.tokens.shape[1] - sequence.prompt
        rewards = -0.1 * (own["fp32"] - others["fp32"])[row, :count].double()
        rewards[-1] += stored[sequence.number].double()
        value = torch.cat([values["fp32"][row, :count].double(), torch.zeros(1)])
        advantage = torch.zeros(count + 1)
        for t in reversed(range(count)):
            advantage[t] = rewards[t] + value[t + 1] - value[t] + 0.95 * advantage[t + 1]
        raw.append(advantage[:-1].double())
    flat = torch.cat(raw)
    whitened = (flat - flat.mean()) / flat.std()
    assert (exact.advantages[exact.mask].double() - whitened).abs().max() < 1e-4
    # A step of 1e-4 nats has a log-ratio of sqrt(2e-4) = 0.014.
    ratio = (own["fp32"] - others["fp32"])[exact.mask]
    assert 0.005 < ratio.square().mean().sqrt() < 0.04


@pytest.mark.parametrize("component", ["policy", "reference", "reward", "value", "kl"])
def test_each_component_alone_moves_the_advantages(
    component: str, step: Step, exact: Inputs
) -> None:
    demoted = replace(REFERENCE, name="mine", **{component: "bf16"})
    moved = (step.inputs(demoted).advantages - exact.advantages)[exact.mask].abs().max()
    assert 1e-5 < moved < 1


def test_the_norm_is_that_of_the_configuration_over_fp32s(
    study: DamageStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Step.inputs

    def doubled(self: Step, configuration: PrecisionConfig, policy: str = "") -> Inputs:
        inputs = usual(self, configuration, policy)
        factor = 2 if configuration.name == PURE.name else 1
        return replace(inputs, advantages=factor * inputs.advantages)

    only = replace(study, asked=[PURE])
    (clean,) = only.measure().steps
    monkeypatch.setattr(Step, "inputs", doubled)
    (planted,) = only.measure().steps
    assert clean.gradient_norm_ratio is not None
    assert planted.gradient_norm_ratio is not None
    assert clean.expected_cosine is not None
    noise = math.sqrt(clean.expected_cosine**-2 - 1)  # over the signal, root mean square
    assert abs(clean.gradient_norm_ratio.value - 1) < 4.5 * noise
    # A factor of 2 is exact; each float64 product and sum of the norms rounds once.
    rounded = 2 * study.step.original.num_parameters() * 2.0**-53
    twice = 2 * clean.gradient_norm_ratio.value
    assert planted.gradient_norm_ratio.value == pytest.approx(twice, rel=rounded)
    assert planted.exact_inputs_cosine == clean.exact_inputs_cosine


def test_fp32_is_true_to_float64(step: Step, exact: Inputs, truth: Array) -> None:
    """What is called truth is off by FP32's own rounding, as its twin is, and by no more."""
    wide = terms(step, replace(exact, logprobs=step.logprobs("fp64")), "fp64")
    assert 0 < lost(truth, wide) < 1e-10


def test_inf_in_a_coordinate_that_is_not_compared_skips_the_step(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "COORDINATES", 1)
    monkeypatch.setattr(steps, "_SMALL", 1)
    slopes: dict[str, torch.Tensor | None] = {
        name: torch.ones_like(p) for name, p in step.original.named_parameters()
    }
    assert step._sampled(slopes).isfinite().all()
    name, first = next(iter(step.original.named_parameters()))
    slopes[name] = torch.ones_like(first).view(-1).index_fill(0, torch.tensor([1]), torch.inf)
    assert step._sampled(slopes).isnan().all()


def test_log_probs_that_are_nan_change_every_clip(
    study: DamageStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = DamageStudy._ratio

    def broken(self: DamageStudy, configuration: PrecisionConfig, policy: int) -> torch.Tensor:
        ratio = usual(self, configuration, policy)
        return torch.full_like(ratio, torch.nan) if configuration == PURE else ratio

    monkeypatch.setattr(DamageStudy, "_ratio", broken)
    assert study._clip_changes(PURE).value == 1
    assert study._clip_changes(REFERENCE).value == 0


def test_a_reference_of_another_size_takes_the_step(job: MainJob, step: Step) -> None:
    other = random_checkpoint(hidden_size=48).model
    own = Step(step.placed, other, step.head, step.scores, step.sequences, [PURE])
    assert own.inputs(PURE).finite


def test_fp32_throughout_is_told_from_every_other_configuration() -> None:
    every = {c.name: policy_of(c) for c in all_configurations()}
    assert [name for name, fmt in every.items() if fmt == TWIN] == ["fp32_baseline"]
    assert [c.name for c in judged(all_configurations())] == [c.name for c in MATRIX]


def test_the_summary_shows_the_step_and_is_silent_without_it(job: MainJob) -> None:
    job.cell("H1", PURE)
    job.pipeline_damage()
    record = job.recorder.record()
    shown = [text for text, _ in summary(record)]
    assert any(text.startswith("mixed_recommended  0.0") for text in shown)
    for text in (pull_request(record), "\n\n".join(findings.whole_step(record))):
        assert "\n| mixed_recommended | 0.0" in text.replace("`", "")
    (table,) = sections._whole_step(record)
    assert [row[0] for row in table.rows] == [c.name for c in MATRIX]
    alone = [text for text, _ in summary(replace(record, cells=(), hypotheses=()))]
    assert any(text.startswith("mixed_recommended  0.0") for text in alone)  # -k pipeline_damage
    without = [text for text, _ in summary(replace(record, pipeline_damage=None))]
    assert not any("whole PPO step" in text for text in without)
