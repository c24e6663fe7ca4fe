"""H6 on a random model: its controls are null, and each planted fault is seen."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from precision_lib.faults import plant
from precision_lib.forensics.evidence import H6Evidence
from precision_lib.forensics.frozen import Frozen, freeze_and_read
from precision_lib.forensics.h6 import updates
from precision_lib.forensics.h6.study import H6Study, open_given
from precision_lib.forensics.h6.updates import (
    QUICK,
    H6Settings,
    Steps,
    batch_of,
    minibatch,
    open_stored,
    take_step,
)
from precision_lib.forensics.hypothesis import Given
from precision_lib.forensics.statistics import NothingComparedError
from precision_lib.matrix import all_configurations, get_configuration
from precision_lib.models.pipeline import Pipeline
from precision_lib.trajectories.batches import FreezeSettings
from tests.unit.small_pipelines import random_pipeline

SETTINGS = replace(QUICK, prompts=4, steps=2, sequences=4)
PURE, REFERENCE = get_configuration("bf16_pure"), get_configuration("fp32_baseline")
STORED = get_configuration("bf16_bf16_master")
DAMAGE = "logprob_change_rel_error"


@pytest.fixture(scope="module")
def models() -> Pipeline:
    return random_pipeline()


@pytest.fixture(scope="module")
def frozen(models: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    settings = FreezeSettings(num_batches=2, batch_size=8, samples_per_prompt=4, max_new_tokens=8)
    return freeze_and_read(models, settings, tmp_path_factory.mktemp("frozen") / "t")


def opened(models: Pipeline, frozen: Frozen, **changes: Any) -> H6Study:
    given = Given(models, replace(SETTINGS, **changes), all_configurations(), frozen)
    return open_given(given)


@pytest.fixture(scope="module")
def study(models: Pipeline, frozen: Frozen) -> H6Study:
    return opened(models, frozen)


def test_fp32_masters_lose_nothing_and_stored_weights_nearly_all(study: H6Study) -> None:
    for configuration in all_configurations():
        cell = study.cell(configuration)
        assert (cell.verdict, cell.metrics[DAMAGE].value) == ("healthy", 0.0)
        assert cell.metrics["masters_moved_frac"].value > 0.7  # unseen tokens have no gradient
        assert cell.shows(H6Evidence).masters["bf16"].metrics[DAMAGE].value > 0.5
    stored = study.cell(STORED)
    assert stored.verdict == "impaired"
    assert stored.metrics["weights_moved_frac"].value < 0.1
    assert study.cell(REFERENCE).metrics["weights_moved_frac"].value > 0.7
    control = study.control()
    assert control.is_null
    assert control.fp32_masters_n == 3 * int(study.mask.sum())
    assert study.verdict().verdict == "supported"


def test_a_large_learning_rate_survives_in_16_bits(models: Pipeline, frozen: Frozen) -> None:
    """The other end of the law: a step of many ulps is stored."""
    cell = opened(models, frozen, learning_rate=0.01).cell(STORED)
    assert cell.verdict == "healthy"
    assert cell.metrics["weights_moved_frac"].value > 0.7


def test_the_steps_are_those_of_torchs_adamw(models: Pipeline, frozen: Frozen) -> None:
    """Masters that the steps are added to, against the optimizer on the masters themselves."""
    model, (batch, size) = models.policy.model, batch_of(frozen, 4)
    stored = open_stored(model, ("fp32",))
    steps = Steps(list(model.parameters()), 1e-3)
    wanted = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(
        wanted, lr=1e-3, betas=updates.BETAS, eps=updates.EPSILON, weight_decay=0.0
    )
    for number in range(3):
        assert take_step(
            stored, "fp32", batch.rows(minibatch(number, 4, size, 4)), steps, lambda *_: None
        )
        for parameter, taken in zip(wanted, steps.taken, strict=True):
            parameter.grad = taken.grad
        optimizer.step()
    for got, want in zip(stored.masters.parameters(), wanted, strict=True):
        # Each of the three steps is rounded once on either side, and added with one rounding.
        limit = 3 * 2 * 2.0**-24 * (want.abs() + 3e-3)
        assert ((got - want).abs() <= limit).all()
    assert all(
        torch.equal(a, b)
        for a, b in zip(stored.masters.parameters(), stored.weights["fp32"], strict=True)
    )
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), wanted, strict=True))


def test_a_truncating_optimizer_breaks_the_laws(models: Pipeline, frozen: Frozen) -> None:
    with plant("step_truncated"):
        laws = opened(models, frozen).cell(PURE).shows(H6Evidence).masters["bf16"].laws
    assert laws.off_nearest > 0


def test_a_step_on_the_16_bit_copy_is_no_fp32_master(models: Pipeline, frozen: Frozen) -> None:
    with plant("step_on_the_copy"):
        study = opened(models, frozen)
        cell = study.cell(PURE)
        control = study.control()
    assert cell.metrics[DAMAGE].value > 0
    assert cell.shows(H6Evidence).masters["fp32"].laws.off_nearest > 0
    assert not control.is_null


def test_minibatches_take_prompt_after_prompt() -> None:
    assert minibatch(0, 4, 3, 2).tolist() == [0, 3]
    assert minibatch(1, 4, 3, 2).tolist() == [6, 9]
    assert minibatch(2, 4, 3, 2).tolist() == [1, 4]
    assert minibatch(0, 2, 3, 4).tolist() == [0, 3, 1, 4]


def test_a_gradient_that_is_not_finite_is_skipped(
    models: Pipeline, frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two: the second is taken, and counted alone."""
    usual, calls = updates.policy_gradient, []

    def gradient(*given: Any) -> list[torch.Tensor]:
        calls.append(1)
        found = usual(*given)
        return [g * torch.inf for g in found] if len(calls) == 1 else found

    monkeypatch.setattr(updates, "policy_gradient", gradient)
    cell = opened(models, frozen).cell(PURE)
    assert cell.shows(H6Evidence).skipped_steps == 1
    assert cell.metrics["masters_moved_frac"].n == cell.shows(H6Evidence).weights


def test_steps_that_change_nothing_are_an_error(models: Pipeline, frozen: Frozen) -> None:
    equal = tuple(replace(s, rewards=torch.ones_like(s.rewards)) for s in frozen.shards)
    with pytest.raises(NothingComparedError, match="all rewards are equal"):
        opened(models, replace(frozen, shards=equal)).cell(PURE)


def test_groups_of_one_sequence_are_refused(models: Pipeline, frozen: Frozen) -> None:
    manifest = frozen.manifest
    alone = replace(manifest, settings=manifest.settings | {"samples_per_prompt": 1})
    with pytest.raises(ValueError, match="freeze 2 or more"):
        opened(models, replace(frozen, manifest=alone))


@pytest.mark.parametrize(
    "wrong", [{"prompts": 1}, {"repeated": 9}, {"sequences": 0}, {"learning_rate": 0.0}]
)
def test_settings_that_measure_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        H6Settings(**wrong)
