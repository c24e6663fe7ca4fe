"""The verdict on simulated dumps: every planted kind by its name, pure noise never."""

from dataclasses import replace

import numpy as np
import pytest

from precision_lib.mismatch.noise import side_sigma
from precision_lib.mismatch.report import exit_code, report_of
from precision_lib.mismatch.schema import Claims, Dump
from precision_lib.mismatch.verdict import judge
from tools.mismatch.calibration import false_alarms
from tools.mismatch.faults import FAULTS, Fault
from tools.mismatch.policy import (
    at,
    draw,
    dump_of,
    entropy,
    log_softmax,
    noise_dump,
    rounding,
)

ROWS, LENGTH = 64, 64
BF16 = Claims("bf16", "bf16", None, 1.0, 1.0, None, "raw")
FP32 = replace(BF16, rollout_dtype="fp32", trainer_dtype="fp32")


def noise(claims: Claims, seed: int = 0, rows: int = ROWS) -> Dump:
    sigmas = (side_sigma(str(claims.rollout_dtype)), side_sigma(str(claims.trainer_dtype)))
    return noise_dump(seed, rows, LENGTH, sigmas, claims)


@pytest.mark.parametrize("claims", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_gross_fault_is_called_by_its_name(fault: Fault, claims: Claims) -> None:
    sigma = side_sigma(str(claims.rollout_dtype))
    dump = fault.plant(7, ROWS, LENGTH, (sigma, sigma), claims, fault.sizes[-1])
    judgement = judge(dump)
    assert judgement.verdict == fault.verdict, judgement.reasons
    assert exit_code(judgement) == 1


def test_pure_noise_of_every_pair_of_formats_is_never_called_a_bug() -> None:
    """A small version of the 1,000 runs in docs/mismatch.md."""
    noisy = false_alarms(66, first=100_000)
    assert sum(noisy.verdicts.values()) == 66
    assert noisy.verdicts["precision"] > 40
    assert noisy.alarms == ()


@pytest.mark.parametrize(("offset", "verdict"), [(8e-6, "precision"), (2e-4, "semantics")])
def test_an_fp32_normaliser_may_be_off_by_its_rounding(offset: float, verdict: str) -> None:
    """torch's log-softmax in FP32 is off by 7e-6 nats for 49,152 logits, all tokens one way.

    What is lost are the other tokens' terms, so that a certain token keeps its log-prob.
    """
    dump = noise_dump(0, ROWS, LENGTH, (5e-6, 5e-6), FP32)
    lost = -offset * np.expm1(dump.rollout)
    judgement = judge(replace(dump, trainer=dump.trainer - lost))
    assert judgement.verdict == verdict, judgement.reasons


def test_equal_to_the_bit_is_equal() -> None:
    dump = noise(BF16)
    judgement = judge(replace(dump, trainer=dump.rollout))
    assert (judgement.verdict, exit_code(judgement)) == ("equal", 0)


def test_no_more_than_the_noise_floor_is_equal() -> None:
    dump = noise(BF16)
    again = dump.trainer + (dump.rollout - dump.trainer)[::-1]
    for factor, verdict in ((0.5, "precision"), (2.0, "equal")):
        second = dump.trainer + factor * (again - dump.trainer)
        assert judge(replace(dump, trainer_again=second)).verdict == verdict


def test_log_probs_stored_in_bf16_are_precision_beyond_what_fp32_claims() -> None:
    dump = noise(FP32)
    bits = dump.rollout.astype(np.float32).view(np.uint32) + 0x8000
    stored = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    judgement = judge(replace(dump, rollout=stored))
    assert (judgement.verdict, judgement.cause) == ("precision", "log-probs stored in bf16")
    assert exit_code(judgement) == 1


@pytest.mark.parametrize("decimals", [2, 3, 4, 5, 6])
def test_fp32_log_probs_of_a_text_file_are_precision_and_no_other_function(decimals: int) -> None:
    """Rounding to decimals does not fall with 1 - p, so that certain tokens look far away."""
    dump = noise_dump(0, ROWS, LENGTH, (5e-7, 5e-7), FP32)
    rounded = np.round(dump.rollout, decimals).astype(np.float32).astype(np.float64)
    judgement = judge(replace(dump, rollout=rounded))
    assert judgement.verdict == "precision", judgement.reasons
    assert exit_code(judgement) == (1 if decimals < 4 else 0)  # beyond what FP32 makes


@pytest.mark.parametrize("tokens", [1, 40])
def test_a_fault_behind_rounded_log_probs_is_not_acquitted(tokens: int) -> None:
    dump = noise_dump(0, ROWS, LENGTH, (5e-7, 5e-7), FP32)
    trainer = dump.trainer.copy()
    trainer[:: len(trainer) // tokens] -= 0.3
    judgement = judge(replace(dump, rollout=np.round(dump.rollout, 4), trainer=trainer))
    assert judgement.verdict not in ("precision", "equal")


def test_a_shift_of_half_of_each_row_is_a_shift_and_is_not_undone_everywhere() -> None:
    dump = noise(BF16)
    late = dump.slot >= 24
    length = np.where(late, np.roll(dump.trainer, 1), dump.trainer)
    judgement = judge(replace(dump, trainer=length))
    assert (judgement.verdict, judgement.cause) == ("alignment", "shift")
    assert judgement.problems[0].undo == 0


@pytest.mark.parametrize("copied", [True, False], ids=["one row copied", "two rows swapped"])
def test_a_single_pair_of_wrong_rows_is_found(copied: bool) -> None:
    dump = noise(BF16)
    values = dump.trainer.reshape(ROWS, LENGTH).copy()
    values[[3]], values[[9]] = values[[9]].copy(), values[[9 if copied else 3]].copy()
    judgement = judge(replace(dump, trainer=values.ravel()))
    assert (judgement.verdict, judgement.cause) == ("alignment", "pairing")
    assert "the trainer's row 3 holds the values of the rollout's row 9" in judgement.reasons[0]


def test_few_tokens_say_nothing() -> None:
    dump = noise(BF16, rows=1)
    judgement = judge(dump)
    assert (judgement.verdict, exit_code(judgement)) == ("cannot say", 2)
    assert report_of(judgement).next == ["dump at least 32 responses of 64 tokens"]


def test_a_small_fault_is_lost_in_bf16_and_stands_out_in_fp32() -> None:
    """A norm epsilon: 0.002 nats of a logit, 1 % of bf16's variance and 25 times fp32's sigma."""
    [fault] = [f for f in FAULTS if f.name == "another function"]
    verdicts = []
    for claims in (BF16, FP32):
        sigma = side_sigma(str(claims.rollout_dtype))
        dump = fault.plant(3, ROWS, LENGTH, (sigma, sigma), claims, 0.005)
        verdicts.append(judge(dump))
    assert [j.verdict for j in verdicts] == ["precision", "model"]
    assert "fp32" in report_of(verdicts[0]).next[-1]


def test_a_size_between_the_limits_is_not_judged_and_the_next_step_is_named() -> None:
    [fault] = [f for f in FAULTS if f.name == "another function"]
    judgement = judge(fault.plant(3, ROWS, LENGTH, (0.05, 0.05), BF16, 0.4))
    assert judgement.verdict == "cannot say"
    assert set(judgement.also_possible) == {"precision", "delivery", "model"}
    assert any("both sides in fp32" in step for step in report_of(judgement).next)


def test_the_users_limit_makes_precision_a_regression() -> None:
    dump = noise(BF16)
    assert exit_code(judge(dump)) == 0
    judgement = judge(dump, limit=0.001)
    assert (judgement.verdict, exit_code(judgement)) == ("precision", 1)
    assert "above the limit given" in judgement.reasons[0]


def test_raw_log_probs_of_a_claimed_temperature_are_semantics_without_entropies() -> None:
    dump = noise(replace(BF16, temperature=0.7))
    assert judge(replace(dump, entropy=None)).verdict == "semantics"


def test_entropies_of_an_unknown_temperature_convict_nobody() -> None:
    """Both sides divide by 0.7; the entropies are those of temperature 1."""
    drawn = draw(5, ROWS, LENGTH, 0.05, temperature=0.7)
    trainer = (drawn.logits + rounding(drawn.random, drawn.logits.shape, 0.05)) / 0.7
    sides = [at(log_softmax(x), drawn.tokens) for x in (drawn.engine / 0.7, trainer)]
    entropies = entropy(log_softmax(drawn.logits))
    raw = dump_of(drawn, sides[0], sides[1], entropies, BF16)
    assert judge(raw).verdict == "semantics"
    claims = replace(BF16, temperature=0.7, logprobs="processed")
    assert judge(replace(raw, claims=claims)).verdict == "precision"


def test_log_probs_above_zero_convict() -> None:
    dump = noise(BF16)
    trainer = dump.trainer.copy()
    trainer[5] = 3.0
    judgement = judge(replace(dump, trainer=trainer))
    assert judgement.verdict == "semantics"
    assert "above 0, up to 3" in judgement.reasons[0]


def test_a_sampled_token_of_probability_zero_convicts_the_trainer() -> None:
    dump = noise(BF16)
    trainer = np.where(np.arange(len(dump.trainer)) % 50 == 0, -np.inf, dump.trainer)
    judgement = judge(replace(dump, trainer=trainer))
    assert judgement.verdict == "semantics"
    assert "probability 0" in judgement.reasons[0]


def test_what_a_shift_hides_is_measured_after_it_is_undone() -> None:
    fault = FAULTS[0]
    judgement = judge(fault.plant(1, ROWS, LENGTH, (0.05, 0.05), BF16, 1.0))
    assert judgement.problems[0].undo == 1
    assert judgement.size.sigma < 0.1


def test_numbers_that_stand_for_no_value_are_missing_values() -> None:
    dump = noise(BF16)
    rollout = np.where(np.arange(len(dump.rollout)) % 70 == 0, -1e9, dump.rollout)
    judgement = judge(replace(dump, rollout=rollout))
    assert (judgement.verdict, judgement.cause) == ("alignment", "missing values")
    assert "59 NaN or below -10,000" in judgement.reasons[0]


def test_rows_that_end_in_missing_values_look_cut_short() -> None:
    dump = noise(BF16)
    cut = (dump.slot > 50) & (dump.row % 4 == 0)
    judgement = judge(replace(dump, trainer=np.where(cut, np.nan, dump.trainer)))
    assert f"{ROWS // 4} rows end in them" in judgement.reasons[0]
