"""Damage and symptoms of a step: each against numpy or a loop over the same numbers."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from precision_lib.bounds import gamma, log_softmax_bound
from precision_lib.formats import FORMATS
from precision_lib.models.reward_model import score_tokens
from precision_lib.scoring.forward import trunk_and_logits
from precision_lib.training.golden import damage, golden_experience, symptoms
from precision_lib.training.rollout import Experience
from precision_lib.training.trainer import ppo_step
from tests.unit.small_runs import (
    DAMAGE,
    SYMPTOMS,
    UNHARMED,
    experience_of,
    opened,
    scored,
    stepped,
)

Array = NDArray[np.float64]
FP64 = FORMATS["fp64"]


@pytest.fixture(scope="module")
def pair() -> tuple[Experience, Experience, Any]:
    """Four sequences of a bf16 run as they are and in FP32, and the run."""
    with opened("bf16_pure", diagnostic_sequences=4, batch_size=8) as run:
        ppo_step(run)
        experience = experience_of(run)
        return *golden_experience(
            run.models, run.weights, experience, run.settings, run.kl_coefficient
        ), run


def test_golden_figures_are_those_of_the_fp32_masters_and_originals(
    pair: tuple[Experience, Experience, Any],
) -> None:
    """Float64 from the logits of their FP32 forwards, found token by token."""
    got, want, run = pair
    sampled, models = want.sampled, run.models.pipeline
    assert len(sampled.tokens) == len(want.rewards) == len(got.rewards) == 4
    for policy, found in (
        (run.weights.golden, want.scored.logprobs),
        (models.reference.model, want.scored.ref_logprobs),
    ):
        with torch.no_grad():
            _, logits = trunk_and_logits(policy, sampled.tokens)
        for row, (start, length) in enumerate(
            zip(sampled.prompt_lengths.tolist(), sampled.response_lengths.tolist(), strict=True)
        ):
            before = logits[row, start - 1 : start - 1 + length]
            chosen = sampled.tokens[row, start : start + length, None]
            exact = before.double().log_softmax(-1).gather(1, chosen)[:, 0]
            error = (found[row, :length].double() - exact).abs()
            assert (error <= log_softmax_bound(before, exact)).all()
    with torch.no_grad():
        scores = score_tokens(models.reward.model, sampled.reward_tokens, sampled.reward_lengths)
    assert torch.equal(want.scored.scores, scores)
    assert want.scored.values.dtype == want.penalty.dtype == torch.float32
    assert got.penalty.dtype == got.scored.scores.dtype == torch.bfloat16


def rows_of(x: Tensor, mask: Tensor) -> list[Array]:
    return [row[real].double().numpy() for row, real in zip(x, mask, strict=True)]


def td_errors(experience: Experience) -> Array:
    """r + V' - V of each real token, the value behind the last being 0."""
    mask, found = experience.given.mask, []
    rewards, values = rows_of(experience.rewards, mask), rows_of(experience.scored.values, mask)
    for r, v in zip(rewards, values, strict=True):
        found.append(r + np.append(v[1:], 0.0) - v)
    return np.concatenate(found)


def by_hand(got: Experience, want: Experience) -> dict[str, float]:
    """The damage, from the same penalties, advantages and scores."""
    mask = got.given.mask
    d, true = (np.concatenate(rows_of(e.penalty, mask)) for e in (got, want))
    k3, golden = (np.mean(np.expm1(-x) + x) for x in (d, true))
    pairs = zip(rows_of(got.penalty, mask), rows_of(want.penalty, mask), strict=True)
    sums = np.array([(a - b).sum() for a, b in pairs])
    weights = np.exp(sums)
    a, truth = (np.concatenate(rows_of(e.advantages, mask)) for e in (got, want))
    td, golden_td = td_errors(got), td_errors(want)
    s, g = (e.scored.scores.double().tolist() for e in (got, want))
    ordered = [(i, j) for i, j in itertools.combinations(range(len(g)), 2) if g[i] != g[j]]
    signs = [np.sign(s[i] - s[j]) * np.sign(g[i] - g[j]) for i, j in ordered]
    return {
        "golden_kl_penalty_mean": float(golden),
        "log_ratio_nsr": math.sqrt(((d - true) ** 2).sum() / (true**2).sum()),
        "kl_k3_rel_error": float(k3 / golden - 1),
        "accum_err_final": math.sqrt((sums**2).mean()),
        "drift_nats_per_1000_tokens": float(1000 * sums.sum() / len(d)),
        "log_ratio_rms_error": math.sqrt(((d - true) ** 2).mean()),
        "sequence_ratio_ess": float(weights.mean() ** 2 / (weights**2).mean()),
        "gae_rms_error": math.sqrt(((a - truth) ** 2).mean() / (truth**2).mean()),
        "gae_sign_flip_frac": float((a * truth < 0).mean()),
        "value_td_zero_frac": float((td[golden_td != 0] == 0).mean()),
        "score_tie_frac": sum(x == 0 for x in signs) / len(signs),
        "score_kendall_tau": float(sum(signs) / len(signs)),
    }


def check_figures(got: Experience, want: Experience) -> dict[str, Any]:
    """All damage but the exponent, whose law is tested below; float64 sums of n terms.

    k3 as ``expm1(-d) + d`` cancels: it is d^2 / 2 out of parts of size |d|.
    """
    found, expected = vars(damage(got, want)), by_hand(got, want)
    assert set(found) == DAMAGE == set(expected) | {"accum_err_growth_exponent"}
    d = want.penalty[want.given.mask].double().abs()
    cancelled = 1 + float(d.sum() / (d.square().sum() / 2))
    relative = gamma(8 * len(d), FP64) * cancelled
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=relative, abs=relative), name
    return found


def test_damage_is_what_numpy_makes_of_the_same_figures(
    pair: tuple[Experience, Experience, Any],
) -> None:
    got, want, _ = pair
    found = check_figures(got, want)
    assert found["log_ratio_nsr"] > 0.1
    assert found["gae_rms_error"] > 1e-3
    swapped = check_figures(want, got)
    assert swapped["drift_nats_per_1000_tokens"] == -found["drift_nats_per_1000_tokens"]


def test_planted_harm_shows_in_its_own_figures(
    pair: tuple[Experience, Experience, Any],
) -> None:
    """From an unharmed copy: ties, a ranking turned round, advantages of the other sign, td = 0."""
    _, want, _ = pair
    unharmed = damage(want, want)
    assert vars(unharmed) == UNHARMED | {"golden_kl_penalty_mean": unharmed.golden_kl_penalty_mean}
    tied = scored(want, scores=torch.ones(4))
    assert check_figures(tied, want)["score_tie_frac"] == 1
    turned = scored(want, scores=-want.scored.scores)
    assert check_figures(turned, want)["score_kendall_tau"] == -1
    pushed = dataclasses.replace(want, advantages=-want.advantages)
    assert check_figures(pushed, want)["gae_sign_flip_frac"] == 1
    assert check_figures(pushed, want)["gae_rms_error"] == 2
    still = scored(
        dataclasses.replace(want, rewards=torch.zeros_like(want.rewards)),
        values=torch.zeros_like(want.scored.values),
    )
    assert check_figures(still, want)["value_td_zero_frac"] == 1


def shifted(want: Experience, error: Tensor) -> dict[str, float | None]:
    """Damage of errors [D, T] in the penalties, on sequences that are T long."""
    tokens = torch.ones_like(error)
    long: dict[str, Any] = {"penalty": tokens, "rewards": tokens, "advantages": tokens}
    figures = dict.fromkeys(("logprobs", "ref_logprobs", "values", "entropy"), tokens)
    given = dataclasses.replace(want.given, mask=tokens.bool())
    exact = scored(dataclasses.replace(want, given=given, **long), **figures)
    return vars(damage(scored(exact, tokens + error), exact))


@pytest.mark.parametrize(
    ("law", "exponent"), [("linear", 1.0), ("flat", 0.0), ("nothing", 0.0), ("square", 2.0)]
)
def test_growth_exponent_is_that_of_a_planted_law(
    law: str, exponent: float, pair: tuple[Experience, Experience, Any]
) -> None:
    """S_t = t / 1024, 1/1024 or t^2 / 1024, exactly representable, at t = 16 ... 64."""
    t = torch.arange(1.0, 65)
    sums = {"linear": t, "flat": torch.ones(64), "nothing": torch.zeros(64), "square": t * t}[law]
    error = torch.diff(sums, prepend=torch.zeros(1)).expand(4, 64) / 1024
    found = shifted(pair[1], error)["accum_err_growth_exponent"]
    assert found == pytest.approx(exponent, abs=gamma(1024, FP64))


def test_symptoms_are_what_a_loop_finds() -> None:
    with opened("bf16_pure", batch_size=8) as run:
        ppo_step(run)
        experience = experience_of(run)
    mask, found = experience.given.mask, vars(symptoms(experience))
    d = np.concatenate(rows_of(experience.penalty, mask))
    reference = np.concatenate(rows_of(experience.scored.ref_logprobs, mask))
    assert set(found) == SYMPTOMS - {"values_unchanged_frac"}
    assert found["kl_k1_mean"] == pytest.approx(d.mean(), rel=gamma(len(d), FP64))
    near = np.abs(d) <= np.spacing(np.abs(reference).astype(np.float32))
    assert 0 < near.mean() < 1
    assert found["log_ratio_near_zero_frac"] == near.mean()
    assert found["log_ratio_all_zero"] is False
    k3 = [float(torch.tensor(math.expm1(-x) + x).bfloat16()) for x in d]
    limit = FORMATS["bf16"].unit_roundoff * 8 * np.mean(k3)  # a series, rounded at each step
    assert abs(float(found["kl_penalty_mean"] or 0) - np.mean(k3)) <= limit
    for name, x in (
        ("reward_resolution_median", experience.scored.scores),
        ("value_quant_step_median", experience.scored.values[mask]),
    ):
        steps = sorted(2.0 ** (math.floor(math.log2(abs(v))) - 7) for v in x.tolist())
        assert found[name] == steps[(len(steps) - 1) // 2]


def test_log_ratios_that_are_all_zero_are_seen_as_such() -> None:
    _, experience = stepped()
    nothing = symptoms(scored(experience, torch.zeros_like(experience.penalty)))
    assert nothing.log_ratio_all_zero is True
    assert nothing.log_ratio_near_zero_frac == 1
    one = torch.zeros_like(experience.penalty)
    one[0, 0] = 1.0
    assert symptoms(scored(experience, one)).log_ratio_all_zero is False
