"""Shapes, exactness and refusals of the KL path; its accuracy is tested in tests/forensics."""

import math

import pytest
import torch

from precision_lib.ppo import kl, logprobs, masked

GENERATOR_SEED = 0


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(GENERATOR_SEED))


def test_shift_aligns_logits_with_the_next_token() -> None:
    tokens = torch.arange(10).view(2, 5)
    logits = tokens[..., None].float().expand(2, 5, 3)
    aligned, targets = logprobs.shift(logits, tokens)
    assert torch.equal(targets, tokens[:, 1:])
    assert torch.equal(aligned[..., 0] + 1, targets.float())


def test_a_16_bit_log_prob_is_the_fp32_one_of_rounded_logits_rounded_once() -> None:
    logits, tokens = draw(2, 3, 500) * 4, torch.tensor([[0, 9, 499], [3, 4, 5]])
    for dtype in (torch.bfloat16, torch.float16):
        want = torch.log_softmax(logits.to(dtype).float(), -1).gather(-1, tokens[..., None])
        got = logprobs.token_logprobs(logits, tokens, dtype)
        assert torch.equal(got, want.squeeze(-1).to(dtype))


def test_identical_log_probs_have_zero_kl_in_every_estimator_and_format() -> None:
    lp = -draw(3, 7).abs()
    for estimator in ("k1", "k2", "k3"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(
                kl.kl_penalty(lp, lp, estimator, dtype), torch.zeros(3, 7, dtype=dtype)
            )


def test_k2_and_k3_are_never_negative_in_any_format() -> None:
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        d = codes[torch.isfinite(codes)].to(dtype)[None]
        for estimator in ("k2", "k3"):
            assert not (kl.kl_penalty(d, torch.zeros_like(d), estimator, dtype) < 0).any()


def test_full_kl_agrees_with_its_definition_and_takes_a_zero_probability() -> None:
    p, q = draw(2, 5, 11), draw(2, 5, 11) * 0.5
    want = torch.nn.functional.kl_div(
        torch.log_softmax(q.double(), -1),
        torch.log_softmax(p.double(), -1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    # 11 terms of size at most 20 in float64, each within a few ulp.
    assert ((kl.full_kl(p, q) - want).abs() < 11 * 20 * 8 * 2.0**-53).all()
    p[0, 0, 0] = -math.inf
    assert torch.isfinite(kl.full_kl(p, q)).all()
    assert torch.equal(kl.full_kl(p, p), torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: logprobs.token_logprobs(torch.zeros(2, 3, 4), torch.zeros(2, 4).long()),
         ValueError, r"got \(2, 3, 4\) and \(2, 4\); align them with shift"),
        (lambda: logprobs.token_logprobs(torch.zeros(2, 3, 4), torch.zeros(2, 3)),
         TypeError, "tokens must be integers, got torch.float32"),
        (lambda: logprobs.shift(torch.zeros(2, 1, 4), torch.zeros(2, 1).long()),
         ValueError, "a sequence of 1 token predicts nothing"),
        (lambda: kl.full_kl(torch.zeros(2, 4), torch.zeros(2, 5)),
         ValueError, "logits of different shapes"),
        (lambda: kl.kl_penalty(torch.zeros(2, 3), torch.zeros(2, 4), "k1"),
         ValueError, r"different shapes: \(2, 3\) and \(2, 4\)"),
        (lambda: kl.kl_penalty(torch.zeros(2, 3), torch.zeros(2, 3), "k4"),
         ValueError, "unknown KL estimator 'k4'; use 'k1', 'k2' or 'k3'"),
        (lambda: masked.masked_mean(torch.zeros(2, 3), torch.ones(2, 3)),
         ValueError, "the mask must be bool, True for a real token, got torch.float32"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call: object, error: type[Exception], message: str) -> None:
    assert callable(call)
    with pytest.raises(error, match=message):
        call()
