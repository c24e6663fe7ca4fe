"""Consequences in RL terms: planted cases of a known answer, a healthy core, broken ones."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib import ppo
from precision_lib.conformance import consequences
from precision_lib.conformance.in_rl_terms import measure
from precision_lib.reporting.consequences import sentence
from precision_lib.targets import INTERFACE, load_target


def test_a_token_that_crosses_the_edge_of_the_clip_is_counted() -> None:
    edge = math.log(1.2)
    want = torch.tensor([edge - 1e-3, edge - 1e-3, edge - 1e-3, -1.0])
    got = torch.tensor([edge + 1e-3, edge + 1e-3, edge - 2e-3, -1.0])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert consequences.clip_decisions_flipped(got, want, advantages, 0.2) == 0.25
    assert consequences.clip_decisions_flipped(want, want, advantages, 0.2) == 0
    lost = torch.full((4,), torch.nan)
    assert consequences.clip_decisions_flipped(lost, want, advantages, 0.2) == 1


def test_an_advantage_that_turns_vanishes_or_is_lost_is_counted() -> None:
    want = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0])
    got = torch.tensor([-1.0, 0.0, torch.nan, -1.0, 5.0])
    assert consequences.signs_flipped(got, want) == 0.75
    assert consequences.signs_flipped(want, want) == 0
    with pytest.raises(ValueError, match="no advantage other than 0"):
        consequences.signs_flipped(got, torch.zeros(5))


def test_pairs_of_a_group_that_tie_or_turn_are_counted() -> None:
    want = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 6.0]])  # 3 + 2 ordered pairs
    got = torch.tensor([[1.0, 3.0, 2.0], [9.0, 1.0, 9.0]])  # one turned, one tied
    assert consequences.rank_inversions(got, want) == pytest.approx(2 / 5)
    assert consequences.rank_inversions(want, want) == 0
    with pytest.raises(ValueError, match="no pair of a group differs"):
        consequences.rank_inversions(got, torch.ones(2, 3))


def test_the_cosine_sees_direction_alone_and_no_lost_gradient_is_near() -> None:
    want = torch.tensor([3.0, 4.0])
    assert consequences.gradient_cosine(1e-30 * want, want) == pytest.approx(1)
    assert consequences.gradient_cosine(torch.tensor([4.0, -3.0]), want) == pytest.approx(0)
    assert consequences.gradient_cosine(-want, want) == pytest.approx(-1)
    assert math.isnan(consequences.gradient_cosine(torch.tensor([torch.nan, 1.0]), want))
    assert math.isnan(consequences.gradient_cosine(torch.zeros(2), want))


@pytest.mark.parametrize("width", [2, 0])
def test_nothing_to_compare_is_an_error(width: int) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        consequences.gradient_cosine(torch.zeros(0), torch.zeros(width))


def test_the_built_in_core_has_no_consequences() -> None:
    found = measure(load_target().functions)
    assert set(found) == set(INTERFACE)
    for name, formats in found.items():
        for figures in formats.values():
            said = sentence(figures)
            assert said == "none" or name in ("token_logprobs", "entropy"), (name, said)
            assert figures.get("clip_decisions_flipped", 0) == 0
            # A gradient in bf16 is rounded by 2^-8 of itself at most: 1 - cos <= (2^-8)^2 / 2.
            assert figures.get("gradient_cosine", 1) == pytest.approx(1, abs=2.0**-17)


def _bf16_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    picked = logits.bfloat16().log_softmax(-1).gather(-1, tokens[..., None])
    return picked.squeeze(-1)


def _textbook_k3(policy_logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    d = policy_logprobs - ref_logprobs
    return (-d).exp() - 1 + d


def _shuffled(rewards: Tensor) -> Tensor:
    return -ppo.group_advantages(rewards)


BROKEN: list[tuple[str, Any, str, float]] = [
    ("token_logprobs", _bf16_logprobs, "clip_decisions_flipped", 1e-4),
    ("kl_penalty", _textbook_k3, "negative", 1e-4),
    ("group_advantages", _shuffled, "signs_flipped", 0.99),
    ("group_advantages", _shuffled, "rank_inversions", 0.99),
]


@pytest.mark.parametrize(("name", "function", "metric", "least"), BROKEN)
def test_a_broken_kernel_has_the_consequence(
    name: str, function: Any, metric: str, least: float
) -> None:
    assert float(measure({name: function})[name]["fp32"][metric]) > least


def test_a_function_that_raises_is_said_and_the_others_are_measured() -> None:
    def broken(x: Tensor, mask: Tensor) -> Tensor:
        raise SystemExit("no kernel")

    found = measure({"whiten": broken, "masked_mean": ppo.masked_mean})
    assert found["whiten"]["fp32"] == {"raised": "SystemExit: no kernel"}
    assert "relative_error" in found["masked_mean"]["fp32"]


def test_what_one_function_leaves_behind_does_not_reach_the_next() -> None:
    def switching(**inputs: Any) -> Tensor:
        torch.set_default_device("meta")
        return ppo.masked_mean(**inputs)

    found = measure({"masked_mean": switching, "whiten": ppo.whiten})
    assert found["whiten"] == measure({"whiten": ppo.whiten})["whiten"]
    assert torch.get_default_device().type == "cpu"


def test_figures_become_words() -> None:
    figures = {"clip_decisions_flipped": 0.0123, "gradient_cosine": 0.99812}
    assert sentence(figures) == "1.2 % of clip decisions flipped; gradient cosine 0.99812"
    assert sentence({"clip_decisions_flipped": 0.0, "gradient_cosine": 1.0}) == "none"
    assert sentence({"gradient_cosine": "nan"}) == "gradient cosine nan"
    assert sentence({"mean_kl_over_true": 0.0}) == "mean KL 0 % of the true one"
    assert sentence({"raised": "ValueError: x"}) == "ValueError: x"
