"""Which formats a run is really in: FP32 masters and moments, and what the models gave."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.training import invariants
from precision_lib.training.invariants import InvariantError
from precision_lib.training.rollout import Experience
from precision_lib.training.trainer import ppo_step
from tests.unit.small_runs import opened, scored, stepped


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("master", "the master weights should be float32"),
        ("gradient", "the gradient should be float32"),
        ("exp_avg", "Adam's first moment should be float32"),
        ("exp_avg_sq", "Adam's second moment should be float32"),
    ],
)
def test_a_bf16_optimizer_is_caught(part: str, message: str) -> None:
    weights = copy.copy(stepped()[0].weights)
    moments = dict(weights.optimizer.state[weights.master])
    if part in moments:
        moments[part] = moments[part].bfloat16()
    else:
        setattr(weights, part, getattr(weights, part).bfloat16())
    weights.optimizer = copy.copy(weights.optimizer)
    weights.optimizer.state = {weights.master: moments}  # type: ignore[assignment]  # a dict does
    with pytest.raises(InvariantError, match=f"{message}, found torch.bfloat16"):
        invariants.check_optimizer(weights)


def rounded(x: Tensor) -> Tensor:
    """Laundered: computed in bf16 and cast to the format that was asked for."""
    return x.bfloat16().to(x.dtype)


@pytest.mark.parametrize(
    ("component", "change"),
    [
        ("value", lambda e: scored(e, values=rounded(e.scored.values))),
        ("value", lambda e: scored(e, values=e.scored.values.bfloat16())),
        ("reward", lambda e: scored(e, scores=rounded(e.scored.scores))),
        ("reward", lambda e: scored(e, scores=e.scored.scores.half())),
        ("kl", lambda e: scored(e, logprobs=rounded(e.scored.logprobs))),
        ("kl", lambda e: scored(e, ref_logprobs=rounded(e.scored.ref_logprobs))),
        ("kl", lambda e: scored(e, e.penalty.bfloat16())),
    ],
)
def test_figures_in_another_format_are_caught(
    component: str, change: Callable[[Experience], Experience]
) -> None:
    run, experience = stepped()
    observed = invariants.observed_formats(run.models, run.weights, change(experience))
    assert {c for c, seen in observed.items() if seen != "fp32"} == {component}
    with pytest.raises(InvariantError, match=rf"{component} runs in .*, fp32_baseline asks for"):
        invariants.check_formats(run.models, observed)


def laundering(model: Any) -> Any:
    """Logits rounded to bf16 and stored in FP32, as under an autocast that nobody sees."""
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _arguments, out: rounded(out))
    return model


@pytest.mark.parametrize("role", ["policy", "reference"])
@pytest.mark.parametrize("fault", ["format", "laundered"])
def test_a_model_in_another_format_is_caught_in_the_step(role: str, fault: str) -> None:
    with opened("fp32_baseline") as run:
        original = run.weights.working if role == "policy" else run.models.reference
        broken = copy.deepcopy(original)
        broken = broken.to(torch.float64) if fault == "format" else laundering(broken)
        if role == "policy":
            run.weights.working = broken
        else:
            run.models = dataclasses.replace(run.models, reference=broken)
        seen = "fp32 and fp64|fp64" if fault == "format" else "bf16 in fp32 and fp32"
        with pytest.raises(InvariantError, match=f"{role} runs in ({seen}), fp32_baseline asks"):
            ppo_step(run)
        assert not run.checked


def test_bf16_parameters_of_a_reward_model_are_caught_in_the_step() -> None:
    with opened("fp32_baseline") as run:
        broken = copy.deepcopy(run.models.reward).to(torch.bfloat16)
        run.models = dataclasses.replace(run.models, reward=broken)
        with pytest.raises(
            InvariantError, match="reward runs in bf16, fp32_baseline asks for fp32"
        ):
            ppo_step(run)
