"""What a run reached: the FP32 evaluation, the summary's windows, and that a reward is learned."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.bounds import gamma
from precision_lib.formats import FORMATS
from precision_lib.record.codec import encode
from precision_lib.runtime import deterministic
from precision_lib.training.evaluation import SEED, Evaluation, evaluate
from precision_lib.training.forward import Sequences
from precision_lib.training.rollout import ScoredRollout, score
from precision_lib.training.summary import WINDOW, best_window, window_mean
from precision_lib.training.trainer import ppo_step
from precision_lib.trajectories.batches import FreezeSettings, Sampled, sample_batch
from tests.unit.small_runs import opened, pipeline, train, variant

FP64 = FORMATS["fp64"]


def evaluated(policy: Any) -> Evaluation:
    with deterministic():
        return evaluate(policy, pipeline(), 6, 8)


def test_policy_that_is_the_reference_has_a_kl_of_exactly_zero() -> None:
    found = evaluated(pipeline().policy.model)
    assert found.kl_per_token == found.kl_per_sequence == 0
    assert found.sequences == 8
    assert 8 <= found.tokens <= 48


def by_hand(policy: Any, sampled: Sampled) -> Iterator[tuple[Tensor, Tensor]]:
    """(KL, entropy) of each response token, float64 from FP32 logits, sequence by sequence."""
    for tokens, start, length in zip(
        sampled.tokens, sampled.prompt_lengths, sampled.response_lengths, strict=True
    ):
        logp, logq = (
            model(input_ids=tokens[None]).logits[0, start - 1 : start - 1 + length].double()
            for model in (policy, pipeline().reference.model)
        )
        logp, logq = logp.log_softmax(-1), logq.log_softmax(-1)
        yield (logp.exp() * (logp - logq)).sum(-1), -(logp.exp() * logp).sum(-1)


def test_kl_and_entropy_are_those_of_the_whole_vocabulary() -> None:
    """Of its own FP32 samples. Sequences go one by one: logits may differ in their last bits."""
    policy = variant("policy", lambda model: model.lm_head.weight.mul_(1.5)).policy
    found = evaluated(policy.model)
    drawing = FreezeSettings(1, 8, 6, 1, seed=SEED)
    made = variant("policy", lambda model: model.lm_head.weight.mul_(1.5))
    with deterministic(), torch.no_grad():
        sampled = sample_batch(made, drawing, 0)
        kl, entropy = zip(*by_hand(policy.model, sampled), strict=True)
    assert found.tokens == len(torch.cat(kl)) == int(sampled.response_lengths.sum())
    u = gamma(64, FORMATS["fp32"])
    assert found.kl_per_token == pytest.approx(float(torch.cat(kl).mean()), rel=u, abs=u)
    sequence = float(torch.stack([x.sum() for x in kl]).mean())
    assert found.kl_per_sequence == pytest.approx(sequence, rel=u, abs=u)
    assert found.entropy_mean == pytest.approx(float(torch.cat(entropy).mean()), rel=u, abs=u)
    assert found.kl_per_token > 0.01


def test_runs_are_measured_alike_whatever_their_formats(tmp_path: Path) -> None:
    names = ("fp32_baseline", "bf16_pure")
    ended = [train(tmp_path / name, name, max_steps=1).evaluation for name in names]
    assert ended[0]["initial"] == ended[1]["initial"]
    assert ended[0]["initial"]["kl_per_token"] == 0
    assert all(one["final"]["kl_per_token"] > 0 for one in ended)


def test_policy_without_a_distribution_is_not_measured() -> None:
    broken = variant("policy", lambda model: model.lm_head.weight.fill_(torch.inf))
    with pytest.raises(FloatingPointError, match="hold NaN or \\+inf"):
        evaluated(broken.policy.model)


def test_windows_leave_out_what_is_no_number() -> None:
    lines: list[dict[str, Any]] = [{"step": i, "x": float(i)} for i in range(4)]
    assert window_mean(lines, "x") == 1.5
    assert window_mean([*lines, {"x": None}, {"x": "nan"}, {}], "x") == 1.5
    assert window_mean([], "x") is None
    assert window_mean(lines, "y") is None


def test_best_window_is_the_one_of_the_highest_mean() -> None:
    rewards = [0.0, 9.0] + [1.0] * (WINDOW - 1) + [3.0] * WINDOW + [0.0]
    lines: list[dict[str, Any]] = [{"step": i, "reward_mean": r} for i, r in enumerate(rewards)]
    assert best_window(lines) == {"reward_mean": 3.0, "step": 2 * WINDOW}
    assert best_window(lines[:2]) == {"reward_mean": 4.5, "step": 1}
    assert best_window([]) == {"reward_mean": None, "step": None}
    lines[2 * WINDOW]["reward_mean"] = "nan"
    assert best_window(lines)["step"] == 2 * WINDOW - 1
    assert best_window([{"step": 0, "reward_mean": "nan"}]) == {"reward_mean": None, "step": None}


@pytest.mark.parametrize("name", ["fp32_baseline", "bf16_pure"])
def test_policy_gradient_raises_a_reward_that_is_easily_learned(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of tokens below 128 in a response: up by more than 5 standard errors."""

    def counting(
        models: Any, weights: Any, sampled: Any, given: Sequences, rows: Any
    ) -> ScoredRollout:
        found = score(models, weights, sampled, given, rows)
        chosen = given.tokens[:, given.first + 1 :].gather(1, given.columns)
        counts = ((chosen < 128) & given.mask).sum(1)
        return dataclasses.replace(found, scores=counts.to(found.scores.dtype))

    monkeypatch.setattr("precision_lib.training.rollout.score", counting)
    fast: dict[str, Any] = {"learning_rate": 1e-2, "epochs": 4, "clip_range": 0.5, "lam": 1.0}
    with opened(name, batch_size=32, kl_coefficient=0.0, **fast) as run:
        lines = [encode(ppo_step(run)) for _ in range(8)]
    error = math.hypot(lines[0]["reward_std"], lines[-1]["reward_std"]) / math.sqrt(32)
    assert lines[-1]["reward_mean"] - lines[0]["reward_mean"] > 5 * error
