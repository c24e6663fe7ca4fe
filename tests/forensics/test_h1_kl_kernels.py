"""The kernels of the KL path on adversarial input, against the oracle, within derived bounds."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from numpy.typing import NDArray

from precision_lib import bounds, oracle
from precision_lib.formats import FORMATS, get_format, round_to, ulp
from precision_lib.ppo import kl, logprobs, masked

FORMAT_NAMES = ("bf16", "fp16", "fp32", "fp64")
SETTINGS = settings(max_examples=50, deadline=None, derandomize=True, database=None)


def adversarial_logits(seed: int, vocabulary: int, spread: float, offset: float) -> torch.Tensor:
    """[2, vocabulary] FP32: normal logits around an offset, the first one far below, one -inf."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, vocabulary, generator=generator) * spread + offset
    logits[0, 0] = logits[0].max() - 200  # exp underflows, the log-prob does not
    logits[1, 1] = -math.inf
    return logits


@pytest.mark.parametrize("fmt", FORMAT_NAMES)
@SETTINGS
@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.integers(2, 300),
    log2_spread=st.integers(-10, 5),
    offset=st.sampled_from([0.0, 1.0, -30.0, 1e3, 1e4]),
)
@example(seed=0, vocabulary=4, log2_spread=0, offset=0.0)
def test_token_logprobs_match_the_oracle(
    fmt: str, seed: int, vocabulary: int, log2_spread: int, offset: float
) -> None:
    """Any token, also one whose probability underflows: the bound plus the format's rounding."""
    logits = adversarial_logits(seed, vocabulary, 2.0**log2_spread, offset)
    rounded = round_to(logits, FORMATS[fmt])
    for token in {0, vocabulary // 2, vocabulary - 1}:
        tokens = torch.full((1, 2), token)
        got = logprobs.token_logprobs(logits[None], tokens, get_format(fmt).dtype).double()
        want = torch.from_numpy(oracle.token_logprobs(rounded[None].numpy(), tokens.numpy()))
        check_within(got, want, logprob_limit(rounded[None], want, fmt), rounded, fmt)


def logprob_limit(logits: torch.Tensor, want: torch.Tensor, fmt: str) -> torch.Tensor:
    """Log-softmax bound in FP32 or float64, then half an ulp of the output at its far end."""
    finite = torch.where(torch.isfinite(want), want, torch.zeros_like(want))
    inside = FORMATS["fp64" if fmt == "fp64" else "fp32"]
    bound = bounds.log_softmax_bound(logits, finite, inside)
    return bound + bounds.rounding_bound(finite.abs() + bound, FORMATS[fmt])


def check_within(
    got: torch.Tensor, want: torch.Tensor, limit: torch.Tensor, logits: torch.Tensor, fmt: str
) -> None:
    """Infinities match position by position, finite values within ``limit``."""
    assert got.numel() > 0
    assert torch.equal(torch.isfinite(got), torch.isfinite(want)), (
        f"token_logprobs in {fmt}: got {got.tolist()}, want {want.tolist()} for logits "
        f"{[x.hex() for x in logits.flatten().tolist()]}"
    )
    finite = torch.isfinite(want)
    error = (got - want).abs()[finite]
    assert (error <= limit[finite]).all(), (
        f"token_logprobs in {fmt}: error {error.tolist()}, limit {limit[finite].tolist()} "
        f"(log_softmax_bound) for logits {[x.hex() for x in logits.flatten().tolist()]}"
    )


def test_check_within_rejects_what_lies_beyond_the_limit_and_a_lost_infinity() -> None:
    """The checker itself: at the limit it passes, one step beyond and for -inf it does not."""
    want, limit, logits = torch.tensor([[-2.0]]), torch.tensor([[0.5]]), torch.zeros(1, 2)
    check_within(torch.tensor([[-2.5]]), want, limit, logits, "fp32")
    beyond = torch.nextafter(torch.tensor([[-2.5]]), torch.tensor(-math.inf))
    with pytest.raises(AssertionError, match=r"error .* limit .*log_softmax_bound"):
        check_within(beyond, want, limit, logits, "fp32")
    with pytest.raises(AssertionError, match="token_logprobs in fp32: got"):
        check_within(torch.tensor([[-math.inf]]), want, limit, logits, "fp32")
    with pytest.raises(AssertionError):
        check_within(torch.empty(0), torch.empty(0), torch.empty(0), logits, "fp32")


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp32", "fp64"])
@SETTINGS
@given(
    exponent=st.floats(-40, 6, allow_nan=False),
    sign=st.sampled_from([-1, 1]),
)
@example(exponent=-13.3, sign=1)  # |d| = 1e-4, where the textbook form is wrong by half its value
@example(exponent=-2.0, sign=-1)  # the border between the series and expm1
def test_k3_has_a_small_relative_error_everywhere(fmt: str, exponent: float, sign: int) -> None:
    """Against mpmath on the same d, in every format.

    Outside the series expm1 has 8 u and the subtraction one, amplified by
    |expm1(x)| / k3(x) <= 2/|x| + 1 <= 9. The series has 3 u for each of 11 terms, every later one
    a quarter of the one before or less, and two products: fewer. Two values may round once more
    where the result is subnormal. Where it overflows, inf is right.
    """
    number = FORMATS[fmt]
    d = torch.tensor([[sign * 2.0**exponent]]).to(number.dtype)
    want = oracle.k3(float(d))
    got = float(kl.kl_penalty(d, torch.zeros_like(d), "k3", number.dtype))
    limit = 9 * (8 + 1) * number.unit_roundoff * want + 2 * number.smallest_subnormal
    if want > number.largest:
        assert got == math.inf
    else:
        assert abs(got - want) <= limit, f"k3({float(d).hex()}): got {got.hex()}, want {want.hex()}"


def test_k1_of_neighbouring_bf16_log_probs_is_exact() -> None:
    """Sterbenz: the subtraction loses nothing, in bf16 as in any format, for a/2 <= b <= 2a."""
    codes = torch.arange(0xBF80, 0xC180, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for step in (1, 5, 100):
        a, b = codes[:-step][None], codes[step:][None]
        near = (a.double().abs() * 2 >= b.double().abs()) & (a != 0)
        got = kl.kl_penalty(a, b, "k1", torch.bfloat16).double()
        assert near.sum() > 100
        assert torch.equal(got[near], (a.double() - b.double())[near])


@SETTINGS
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 2000), log2_scale=st.integers(-30, 30))
def test_masked_mean_is_within_its_bound_and_ignores_masked_nan(
    seed: int, count: int, log2_scale: int
) -> None:
    """Against an exactly rounded sum; NaN and inf in masked slots do not matter."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count + 2, generator=generator) * 2.0**log2_scale
    mask = torch.ones(count + 2, dtype=torch.bool)
    mask[-2:] = False
    x[-2], x[-1] = math.nan, math.inf
    values: NDArray[np.float32] = x.numpy()
    want = oracle.masked_mean(values, mask.numpy())
    limit = bounds.mean_bound(float(x[:-2].double().abs().sum()), count, FORMATS["fp32"])
    assert abs(float(masked.masked_mean(x, mask)) - want) <= limit


def test_masked_mean_of_an_empty_mask_is_zero() -> None:
    x = torch.full((2, 3), math.nan)
    assert float(masked.masked_mean(x, torch.zeros(2, 3, dtype=torch.bool))) == 0


def test_ulp_at_the_typical_log_prob_is_two_to_the_minus_six() -> None:
    """The step that H1 is about: a log-prob near -2.3 lies on a grid of 1/64 in bf16."""
    assert ulp(torch.tensor([-2.0, -2.3, -3.9]), FORMATS["bf16"]).tolist() == [2.0**-6] * 3
