"""What the core refuses, and how it says so. B sequences, T tokens, V vocabulary entries."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib import ppo
from precision_lib.ppo.kl import full_kl, update_kl_coefficient
from precision_lib.ppo.logprobs import shift
from precision_lib.ppo.losses import ratio_report
from precision_lib.ppo.rewards import assemble_rewards
from tests.unit.ppo.layouts import everything, ragged

ROW, FULL = torch.zeros(1, 3), ragged(3)
PAIR = torch.ones(1, 2)
Z23, Z234, TOKENS = torch.zeros(2, 3), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
FP8 = torch.float8_e4m3fn
MASK, SCORES, KL = ragged(5, 2, 1, 4), torch.zeros(4), torch.zeros(4, 5)


def weights(*options: Any) -> Tensor:
    return ppo.importance_weights(PAIR, PAIR, PAIR > 0, *options)


def dapo(*clips: float, **options: float) -> Tensor:
    return ppo.dapo_loss(PAIR, PAIR, PAIR, PAIR > 0, *clips, **options)


def linear(**changes: Any) -> Tensor:
    given: dict[str, Any] = {"hidden": Z234, "weight": torch.zeros(5, 4), "tokens": TOKENS}
    return ppo.linear_token_logprobs(**given | changes)


Calls = Sequence[tuple[Callable[[], object], str]]
# fmt: off
BAD_VALUES: Calls = (
    (lambda: ppo.token_logprobs(Z234, torch.zeros(2, 4).long()),
     r"got \(2, 3, 4\) and \(2, 4\); align them with shift"),
    (lambda: ppo.token_logprobs(torch.zeros(3, 4), torch.zeros(3).long()),
     r"expected logits \[B, T, V\] and tokens \[B, T\], got \(3, 4\) and \(3,\)"),
    (lambda: ppo.entropy(torch.zeros(3, 4)), r"expected logits \[B, T, V\], got \(3, 4\)"),
    (lambda: shift(torch.zeros(2, 1, 4), torch.zeros(2, 1).long()),
     "a sequence of 1 token predicts nothing"),
    (lambda: shift(Z234, torch.zeros(2, 2).long()),
     r"expected logits \[B, L, V\] and tokens \[B, L\], got \(2, 3, 4\)"),
    (lambda: ppo.policy_loss(ROW, ROW, ROW, ROW, 0.2), "must be bool, .* got torch.float32"),
    (lambda: ppo.policy_loss(ROW, ROW[:, :2], ROW, FULL, 0.2),
     r"old_logprobs has shape \(1, 2\), the mask \(1, 3\)"),
    (lambda: ppo.policy_loss(ROW, ROW, ROW[0], FULL, 0.2), r"advantages has shape \(3,\)"),
    (lambda: ppo.policy_loss(ROW, ROW, ROW, FULL, 0.0), "between 0 and 1, got 0.0"),
    (lambda: ppo.policy_loss(ROW, ROW, ROW, FULL, 1.0), "between 0 and 1, got 1.0"),
    (lambda: ppo.policy_loss(ROW, ROW, ROW, FULL, math.nan), "between 0 and 1, got nan"),
    (lambda: ppo.value_loss(ROW, ROW, ROW, FULL.int(), 0.2), "must be bool, .* got torch.int32"),
    (lambda: ppo.value_loss(ROW[:, :2], ROW, ROW, FULL, 0.2), r"values has shape \(1, 2\)"),
    (lambda: ppo.value_loss(ROW, ROW, ROW[:, :2], FULL, 0.2), r"returns has shape \(1, 2\)"),
    (lambda: ppo.value_loss(ROW, ROW, ROW, FULL, 0.0), "must be positive, got 0.0"),
    (lambda: ppo.value_loss(ROW, ROW, ROW, FULL, math.nan), "must be positive, got nan"),
    (lambda: ratio_report(ROW, ROW[:, :2], FULL, 0.2), r"old_logprobs has shape \(1, 2\)"),
    (lambda: ratio_report(ROW, ROW, ROW, 0.2), "must be bool, .* got torch.float32"),
    (lambda: ratio_report(ROW, ROW, FULL, 1.5), "between 0 and 1, got 1.5"),
    (lambda: full_kl(torch.zeros(2, 4), torch.zeros(2, 5)),
     r"logits of different shapes: \(2, 4\) and \(2, 5\)"),
    (lambda: ppo.kl_penalty(Z23, torch.zeros(2, 4), "k1"),
     r"log-probs of different shapes: \(2, 3\) and \(2, 4\)"),
    (lambda: ppo.kl_penalty(Z23, torch.zeros(3), "k1"), r"different shapes: \(2, 3\) and \(3,\)"),
    (lambda: ppo.kl_penalty(Z23, Z23, "k4"), "unknown KL estimator 'k4'; use 'k1', 'k2' or 'k3'"),
    (lambda: update_kl_coefficient(0.1, math.nan, 6.0, 100, 1), "observed KL is nan"),
    (lambda: update_kl_coefficient(0.1, math.inf, 6.0, 100, 1), "observed KL is inf"),
    (lambda: update_kl_coefficient(0.0, 1.0, 6.0, 100, 1), "must be positive"),
    (lambda: update_kl_coefficient(0.1, 1.0, 0.0, 100, 1), "must be positive"),
    (lambda: update_kl_coefficient(0.1, 1.0, 6.0, 0, 1), "must be positive"),
    (lambda: update_kl_coefficient(0.1, 1.0, 6.0, 100, -1),
     "steps at least 0 and below 5 horizon, got .*, 100, -1"),
    (lambda: update_kl_coefficient(0.1, 1.0, 6.0, 100, 500),
     "steps at least 0 and below 5 horizon, got .*, 100, 500"),
    (lambda: ppo.gae(ROW[0], ROW[0], everything(3), 0.9, 0.9), r"a mask \[B, T\], got \(3,\)"),
    (lambda: ppo.gae(ROW, ROW, ROW, 0.9, 0.9), "must be bool"),
    (lambda: ppo.gae(ROW[:, :2], ROW, FULL, 0.9, 0.9), r"rewards has shape \(1, 2\)"),
    (lambda: ppo.gae(ROW, ROW[:, :2], FULL, 0.9, 0.9), r"values has shape \(1, 2\)"),
    (lambda: ppo.gae(ROW, ROW, FULL, 1.01, 0.9), r"must lie in \[0, 1\], got 1.01"),
    (lambda: ppo.gae(ROW, ROW, FULL, 0.9, -0.1), r"\[0, 1\], got 0.9 and -0.1"),
    (lambda: ppo.gae(ROW, ROW, FULL, math.nan, 0.9), r"\[0, 1\], got nan"),
    (lambda: ppo.group_advantages(ROW[0]), r"expected rewards \[G, K\] with K >= 1, got \(3,\)"),
    (lambda: ppo.group_advantages(ROW[:, :0]), r"with K >= 1, got \(1, 0\)"),
    (lambda: ppo.masked_mean(ROW, torch.ones(1, 3)), "must be bool, .* got torch.float32"),
    (lambda: ppo.masked_mean(ROW, everything(1, 4)), r"x has shape \(1, 3\), the mask \(1, 4\)"),
    (lambda: ppo.whiten(ROW, torch.ones(1, 3).int()), "must be bool, .* got torch.int32"),
    (lambda: ppo.whiten(ROW, everything(3)), r"x has shape \(1, 3\), the mask \(3,\)"),
    (lambda: ppo.whiten(ROW[0], everything(3)), r"expected x \[B, T\], got \(3,\)"),
    (lambda: assemble_rewards(SCORES, KL, MASK.float(), 0.1), "must be bool, .* torch.float32"),
    (lambda: assemble_rewards(SCORES, KL[:, :2], MASK, 0.1), r"kl has shape \(4, 2\)"),
    (lambda: assemble_rewards(SCORES[:2], KL, MASK, 0.1), r"expected scores \[4\], got \(2,\)"),
    (lambda: assemble_rewards(SCORES[:, None], KL, MASK, 0.1),
     r"expected scores \[4\], got \(4, 1\)"),
    (lambda: assemble_rewards(SCORES, KL, MASK, -0.1),
     "kl_coefficient must be finite and not negative, got -0.1"),
    (lambda: assemble_rewards(SCORES, KL, MASK, math.nan),
     "kl_coefficient must be finite and not negative, got nan"),
    (lambda: assemble_rewards(SCORES, KL[0], MASK[0], 0.1), r"a mask \[B, T\], got \(5,\)"),
    (lambda: assemble_rewards(SCORES, KL, ragged(5, 0, 1, 0), 0.1),
     r"sequences \[1, 3\] have no real token to carry their score"),
    (lambda: assemble_rewards(SCORES, KL[:, :0], MASK[:, :0], 0.1),
     r"sequences \[0, 1, 2, 3\] have no real token"),
    (lambda: update_kl_coefficient(math.nan, 1.0, 6.0, 100, 1), "positive"),
    (lambda: update_kl_coefficient(0.1, 1.0, math.nan, 100, 1), "positive"),
    (lambda: ppo.aggregate(PAIR, PAIR > 0, "mean"), "unknown mode 'mean'; use one of token_mean"),
    (lambda: ppo.aggregate(PAIR, PAIR > 0, "constant"), "needs a denominator"),
    (lambda: ppo.aggregate(PAIR, PAIR > 0, "token_mean", 0.0), "must be positive, got 0.0"),
    (lambda: ppo.aggregate(PAIR[0], PAIR[0] > 0, "token_mean"), r"expected values \[B, T\]"),
    (lambda: weights("word", "mask", 2.0), "unknown level 'word'"),
    (lambda: weights("token", "clip", 2.0), "mode 'clip'"),
    (lambda: weights("token", "mask", 0.0), "the cap must be positive, got 0.0"),
    (lambda: dapo(0.0, 0.2), "clip_low must lie in"),
    (lambda: dapo(0.2, 0.0), "clip_high above 0"),
    (lambda: dapo(0.2, 0.28, dual_clip=1.0), "dual_clip must be above 1, got 1.0"),
    (lambda: dapo(0.2, 0.28, denominator=-1.0), "the denominator must be positive"),
    (lambda: ppo.gspo_loss(PAIR, PAIR, PAIR, PAIR > 0, 0.2, 0.28), "advantages has shape"),
    (lambda: linear(weight=torch.zeros(5, 7)), r"expected hidden \[B, T, H\], weight \[V, H\]"),
    (lambda: linear(tokens=TOKENS - 100), r"tokens lie in \[-100, -100\]"),
    (lambda: linear(temperature=0.0), "the temperature must be positive, got 0.0"),
    (lambda: ppo.token_logprobs(Z234, TOKENS, temperature=-1.0), "temperature must be positive"),
    (lambda: ppo.gae(ROW, ROW, FULL, 0.5, 1.0, bootstrap=ROW), r"bootstrap \[B\] = \(1,\), got"),
    (lambda: ppo.rloo_advantages(torch.zeros(2, 1)), "K >= 2"),
    (lambda: ppo.dpo_loss(ROW[0], ROW[0], ROW[0], ROW, 1.0), "four log-probs of one shape"),
    (lambda: ppo.dpo_loss(ROW[0], ROW[0], ROW[0], ROW[0], 0.0), "beta must be positive"),
    (lambda: ppo.jsd(Z234, Z234, 1), "beta must lie between 0 and 1, got 1"),
    (lambda: ppo.jsd(Z234, Z234[..., :-1], 0.5), r"logits \[B, T, V\] of one shape"),
)
BAD_TYPES: Calls = (
    (lambda: ppo.token_logprobs(Z234, Z23), "tokens must be integers, got torch.float32"),
    (lambda: ppo.token_logprobs(Z234, Z23.bool()), "tokens must be integers, got torch.bool"),
    (lambda: ppo.token_logprobs(Z234.long(), TOKENS),
     "logits must be floating-point numbers, got torch.int64"),
    (lambda: ppo.entropy(Z234.int()), "logits must be floating-point numbers, got torch.int32"),
    (lambda: linear(tokens=Z23), "tokens must be integers"),
    (lambda: ppo.masked_mean(ROW.int(), FULL), "x is torch.int32; cast it to bf16"),
    (lambda: ppo.masked_mean(ROW.to(FP8), FULL), "x is torch.float8_e4m3fn; cast it to bf16"),
    (lambda: ppo.whiten(ROW.int(), FULL), "x is torch.int32; cast it to bf16"),
    (lambda: ppo.whiten(ROW.to(FP8), FULL), "x is torch.float8_e4m3fn; cast it to bf16"),
)
# fmt: on


@pytest.mark.parametrize(("call", "message"), BAD_VALUES)
def test_a_bad_value_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), BAD_TYPES)
def test_numbers_of_another_kind_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()
