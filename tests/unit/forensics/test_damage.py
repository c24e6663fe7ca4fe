"""The gradient of a whole step: cosines that are known, planted faults that must turn it."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from precision_lib.forensics.damage import step as steps
from precision_lib.forensics.damage.figures import (
    Products,
    cosine_metric,
    expected_cosine,
    norm_metric,
    products,
)
from precision_lib.forensics.damage.measure import DamageStudy, open_damage
from precision_lib.forensics.damage.step import Inputs, Loss, Step
from precision_lib.forensics.damage.work import TWIN, judged, policy_of
from precision_lib.forensics.policy_shift import OPERATING_KL
from precision_lib.forensics.statistics import NothingComparedError
from precision_lib.matrix import MATRIX, all_configurations, get_configuration
from precision_lib.metrics.measure import Array
from precision_lib.phases.main_job import MainJob
from precision_lib.record.codec import decode, encode
from precision_lib.record.record import Record
from precision_lib.record.recorder import Recorder
from precision_lib.reporting import sections
from precision_lib.reporting.gate import pull_request
from precision_lib.reporting.table import summary
from tests.unit.small_pipelines import random_pipeline
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


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 0.1, 1.0, 2.0, 3.0])
def test_an_angle_that_is_known(angle: float) -> None:
    """Two sequences whose terms add up to vectors at an angle, of norms 1 and 2."""
    rest = np.array([0.3, -0.2, 0.5])
    want, got = np.array([1.0, 0.0, 0.0]), 2 * np.array([np.cos(angle), np.sin(angle), 0.0])
    given = products(np.stack([got - rest, rest]), np.stack([want - rest, rest]))
    assert given.lost() == pytest.approx(2 * np.sin(angle / 2) ** 2, rel=1e-6, abs=1e-15)
    assert given.norm_ratio() == pytest.approx(2, rel=1e-12)


def test_the_interval_covers_a_cosine_that_is_known() -> None:
    """Independent noise of a hundredth of the signal's power on 16 sequences: 95 of 100 times."""
    generator, inside = np.random.default_rng(0), 0
    for _ in range(200):
        truth = generator.normal(size=(16, 400)) + 1
        metric = cosine_metric(products(truth + 0.1 * generator.normal(size=truth.shape), truth), 1)
        # Signal 16 (1 + 16) and noise 16 / 100 for each coordinate.
        inside += metric.low <= 1 / np.sqrt(1 + 0.01 / 17) <= metric.high
    assert inside >= 180  # 95 % less 3 standard errors


def test_equal_gradients_have_a_cosine_of_one_and_none_is_refused() -> None:
    truth = np.random.default_rng(0).normal(size=(4, 9))
    same = products(truth, truth)
    for metric in (cosine_metric(same, 7), norm_metric(same, 7)):
        assert (metric.value, metric.low, metric.high, metric.n) == (1, 1, 1, 7)
    assert products(0 * truth, truth).lost() == 1
    for nothing in (0 * truth, truth[:1]):
        with pytest.raises(NothingComparedError, match="sequences give no gradient"):
            products(nothing, nothing)


def test_leaving_a_sequence_out_is_the_product_without_it() -> None:
    generator = np.random.default_rng(1)
    got, want = generator.normal(size=(2, 5, 9))
    left = products(got, want).without(2)
    rest = [0, 1, 3, 4]
    assert isinstance(left, Products)
    assert left.lost() == pytest.approx(lost(got[rest], want[rest]), rel=1e-12)


def test_independent_errors_of_advantages_and_log_probs_give_the_expected_cosine() -> None:
    assert expected_cosine(0.3, 0.4) == pytest.approx(1 / np.sqrt(1.25))
    generator = np.random.default_rng(2)
    slopes, advantages = generator.normal(size=(2000, 300)), generator.normal(size=(2000, 1))
    errors = 1 + 0.1 * generator.normal(size=advantages.shape) / np.abs(advantages)
    got, want = advantages * errors * slopes, advantages * slopes
    limit = 1 - expected_cosine(0.0, 0.1)
    assert lost(got[:, :], want) == pytest.approx(limit, rel=0.2)


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


def test_ratios_are_bitwise_one_before_the_step(step: Step) -> None:
    """The old log-probs are those of the forward that the gradient is taken through."""
    for configuration in (PURE, REFERENCE):
        inputs = step.inputs(configuration)
        fmt = configuration.forward_format("policy")
        with step._model("policy", fmt) as model:
            model.requires_grad_(True)
            own, _ = step._forward(model, step.sequences[0], [configuration.kl])
        count = own[configuration.kl].shape[1]
        assert torch.equal(own[configuration.kl][0].detach(), inputs.logprobs[0, :count])


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
    for text in (pull_request(record), "\n\n".join(findings._whole_step(record))):
        assert "\n| mixed_recommended | 0.0" in text.replace("`", "")
    (table,) = sections._whole_step(record)
    assert [row[0] for row in table.rows] == [c.name for c in MATRIX]
    without = [text for text, _ in summary(replace(record, pipeline_damage=None))]
    assert not any("whole PPO step" in text for text in without)
