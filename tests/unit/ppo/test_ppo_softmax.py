"""What the core promises of token log-probs and entropies beyond the conformance tests.

B sequences, T tokens, V vocabulary entries.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from precision_lib import bounds, oracle
from precision_lib.formats import FORMATS
from precision_lib.ppo import entropy, token_logprobs
from precision_lib.ppo.logprobs import shift
from tests.unit.ppo.layouts import (
    FLOATS,
    random,
    same_bits,
    within,
)

FP64, LARGE = FORMATS["fp64"], 151_936  # the vocabulary of Qwen2


def tokens_of(logits: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(logits.shape[-1], logits.shape[:-1], generator=generator)


def entropy_with_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """The entropy with the signature of token_logprobs, which ignores the tokens."""
    return entropy(logits)


Function = Callable[[Tensor, Tensor], Tensor]
BOTH = {"token_logprobs": token_logprobs, "entropy": entropy_with_tokens}
both = pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)


def with_gradient(function: Function, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Value and the gradient of a sum with weights 1, 2, 3, ... over the slots."""
    leaf = logits.detach().requires_grad_()
    value = function(leaf, tokens)
    (gradient,) = torch.autograd.grad(value, leaf, slot_weights(value))
    return value.detach(), gradient


def slot_weights(value: Tensor) -> Tensor:
    weights = torch.arange(1, value.numel() + 1, dtype=value.dtype)
    return weights.view(value.shape)


def exact_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.from_numpy(oracle.token_logprobs(logits.double().numpy(), tokens.numpy()))


def exact_entropy(logits: Tensor) -> Tensor:
    return torch.from_numpy(oracle.entropy(logits.double().numpy()))


# The known traps


def test_a_logit_offset_of_10000_costs_no_digit() -> None:
    logits = random(2, 4, 500) + 1e4
    tokens = tokens_of(logits)
    want = exact_logprobs(logits, tokens)
    limit = bounds.log_softmax_bound(logits, want)
    within(got=token_logprobs(logits, tokens), want=want, limit=limit)
    trap = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
    assert ((trap - want).abs() > limit).any()
    within(got=entropy(logits), want=exact_entropy(logits), limit=bounds.entropy_bound(logits))


def test_a_vocabulary_of_151936_keeps_the_bound_that_torch_log_softmax_exceeds() -> None:
    """One token a little ahead of all others, which are equal: nothing averages out."""
    logits = torch.full((1, 2, LARGE), -0.675)
    logits[..., 0] = 0.0
    tokens = tokens_of(logits)
    want = exact_logprobs(logits, tokens)
    limit = bounds.log_softmax_bound(logits, want)
    within(got=token_logprobs(logits, tokens), want=want, limit=limit)
    trap = torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
    assert ((trap - want).abs() > limit).all()
    within(got=entropy(logits), want=exact_entropy(logits), limit=bounds.entropy_bound(logits))


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits = (random(1, 4, 32_000) * 2).bfloat16()
    tokens = tokens_of(logits)
    want = exact_logprobs(logits, tokens)
    limit = bounds.log_softmax_bound(logits, want)
    within(got=token_logprobs(logits, tokens), want=want, limit=limit)
    trap = logits.gather(-1, tokens[..., None])[..., 0] - torch.logsumexp(logits, -1)
    assert ((trap - want).abs() > limit).all()
    within(got=entropy(logits), want=exact_entropy(logits), limit=bounds.entropy_bound(logits))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_a_logit_of_minus_infinity_adds_nothing_to_the_entropy(dtype: torch.dtype) -> None:
    """Three equal tokens and an impossible one: log 3, with a gradient of 0 everywhere."""
    logits = torch.tensor([[[2.0, 2.0, -math.inf, 2.0]]], dtype=dtype)
    value, gradient = with_gradient(entropy_with_tokens, logits, tokens_of(logits))
    fmt = FORMATS["fp64" if dtype == torch.float64 else "fp32"]
    want = torch.tensor([[math.log(3)]], dtype=torch.float64)
    within(got=value, want=want, limit=bounds.entropy_bound(logits, fmt))
    assert gradient[0, 0, 2] == 0
    limit = bounds.entropy_gradient_bound(logits, torch.ones(1, 1), fmt)
    within(got=gradient, want=torch.zeros(1, 1, 4), limit=limit)
    trap = logits.clone().requires_grad_()
    log_p = torch.log_softmax(trap, -1)
    (log_p.exp() * log_p).sum().backward()
    assert trap.grad is not None
    assert trap.grad.isnan().any()


def test_the_log_prob_of_a_zero_probability_is_minus_infinity_and_only_its_own() -> None:
    logits, tokens = random(1, 2, 5), torch.tensor([[0, 1]])
    logits[0, 0, 0] = -math.inf
    got = token_logprobs(logits, tokens)
    assert got[0, 0] == -math.inf
    assert torch.isfinite(got[0, 1])


@both
@pytest.mark.parametrize("content", [math.nan, math.inf])
def test_nan_logits_of_a_slot_stay_in_their_slot(function: Function, content: float) -> None:
    """With an upstream gradient of 0 the slot's gradient is 0, bit for bit; others do not change.

    A product with the mask instead would make it NaN.
    """
    logits = random(2, 3, 40)
    tokens = tokens_of(logits)
    clean, clean_gradient = with_gradient(function, logits, tokens)
    logits[1, 2] = content
    logits.requires_grad_()
    value = function(logits, tokens)
    upstream = slot_weights(value)
    upstream[1, 2] = 0.0
    (gradient,) = torch.autograd.grad(value, logits, upstream)
    assert value[1, 2].isnan()
    same_bits(got=value.flatten()[:5], want=clean.flatten()[:5])
    same_bits(got=gradient.view(6, 40)[:5], want=clean_gradient.view(6, 40)[:5])
    same_bits(got=gradient[1, 2], want=torch.zeros(40))


def test_a_row_of_minus_infinities_is_not_a_distribution() -> None:
    logits = torch.stack([torch.full((3,), -math.inf), torch.zeros(3)])[None]
    got = entropy(logits)
    assert got[0, 0].isnan()
    assert torch.isfinite(got[0, 1])


# Formats


@both
@FLOATS
def test_the_result_is_fp32_or_wider_and_the_gradient_in_the_format_of_the_logits(
    function: Function, dtype: torch.dtype
) -> None:
    logits = random(2, 3, 10).to(dtype)
    value, gradient = with_gradient(function, logits, tokens_of(logits))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_log_prob_is_the_fp32_one_of_rounded_logits_rounded_once(
    dtype: torch.dtype,
) -> None:
    logits = random(2, 3, 500) * 4
    tokens = tokens_of(logits)
    got = token_logprobs(logits, tokens, dtype)
    same_bits(got=got, want=token_logprobs(logits.to(dtype), tokens).to(dtype))
    assert not torch.equal(got.float(), token_logprobs(logits, tokens))
    leaf = logits.clone().requires_grad_()
    token_logprobs(leaf, tokens, dtype).sum().backward()
    assert leaf.grad is not None
    same_bits(got=leaf.grad, want=leaf.grad.to(dtype).float())  # it passed through the format


def test_float64_asked_for_is_float64_throughout() -> None:
    logits = random(1, 4, 50) * 4
    tokens = tokens_of(logits)
    got = token_logprobs(logits, tokens, torch.float64)
    assert got.dtype == torch.float64
    want = [oracle.token_logprob(z, t) for z, t in zip(logits[0].tolist(), tokens[0], strict=True)]
    exact = torch.tensor([want], dtype=torch.float64)
    within(got=got, want=exact, limit=bounds.log_softmax_bound(logits, exact, FP64))


def test_fp32_asked_for_of_float64_logits_rounds_them_first() -> None:
    logits = random(1, 4, 50).double() * (1 + 2.0**-30)
    tokens = tokens_of(logits)
    got = token_logprobs(logits, tokens, torch.float32)
    same_bits(got=got, want=token_logprobs(logits.float(), tokens))


# Rows do not see each other


@both
@pytest.mark.parametrize("vocabulary", [1, 7, 1000, 32_000])
def test_a_row_has_the_same_bits_alone_as_in_any_batch(function: Function, vocabulary: int) -> None:
    """Also over several buffers of rows, the last one part full; value and gradient."""
    logits = random(3, 6, vocabulary) * 3
    tokens = tokens_of(logits)
    value, gradient = with_gradient(function, logits, tokens)
    scale = slot_weights(value)
    for b, t in ((0, 0), (1, 4), (2, 5)):
        place = slice(b, b + 1), slice(t, t + 1)
        leaf = logits[place].clone().requires_grad_()
        alone = function(leaf, tokens[place])
        same_bits(got=alone, want=value[place])
        (alone_gradient,) = torch.autograd.grad(alone, leaf, scale[place])
        same_bits(got=alone_gradient, want=gradient[place])


@both
def test_padding_and_the_order_of_sequences_change_no_bit(function: Function) -> None:
    logits = random(4, 5, 300)
    tokens = tokens_of(logits)
    want = function(logits, tokens)
    longer = torch.cat([logits, torch.full((4, 2, 300), math.nan)], 1)
    with_padding = function(longer, torch.nn.functional.pad(tokens, (0, 2)))
    same_bits(got=with_padding[:, :5], want=want)
    order = torch.tensor([2, 0, 3, 1])
    same_bits(got=function(logits[order], tokens[order]), want=want[order])


@both
def test_the_gradient_of_some_rows_reaches_these_rows_only(function: Function) -> None:
    logits = random(3, 4, 20)
    tokens = tokens_of(logits)
    value, gradient = with_gradient(lambda z, t: function(z[1:, :2], t[1:, :2]), logits, tokens)
    _, alone = with_gradient(function, logits[1:, :2].clone(), tokens[1:, :2])
    assert value.shape == (2, 2)
    same_bits(got=gradient[1:, :2], want=alone)
    gradient[1:, :2] = 0
    same_bits(got=gradient, want=torch.zeros(3, 4, 20))


@both
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)], ids=str)
def test_no_rows_give_no_results(function: Function, shape: tuple[int, int]) -> None:
    logits = torch.zeros(*shape, 5)
    value, gradient = with_gradient(function, logits, torch.zeros(shape, dtype=torch.int64))
    assert value.shape == shape
    assert gradient.shape == logits.shape


# Gradients


def textbook_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


def textbook_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    value: Tensor = Categorical(logits=logits).entropy()
    return value


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("scale", "offset"), [(2.0**-10, 0), (1, 0), (10, 0), (1, 1e4), (1, -1e4)])
def test_gradients_are_those_of_float64_autograd(name: str, scale: float, offset: float) -> None:
    logits = random(2, 3, 200) * scale + offset
    tokens = tokens_of(logits)
    textbook = textbook_logprobs if name == "token_logprobs" else textbook_entropy
    _, got = with_gradient(BOTH[name], logits, tokens)
    value, want = with_gradient(textbook, logits.double(), tokens)
    upstream = slot_weights(value)
    limit = (
        bounds.log_softmax_gradient_bound(logits, tokens, upstream)
        if name == "token_logprobs"
        else bounds.entropy_gradient_bound(logits, upstream)
    )
    within(got=got, want=want, limit=limit)


@both
def test_float64_gradients_agree_with_differences(function: Function) -> None:
    """A central difference errs by h^2/6 of the third derivative and by the values' error over h.

    A third derivative of log-sum-exp is a cumulant of an indicator, at most 1; of the entropy it
    is at most 5 (1 + R), R the range of the logits: a sum of products of probabilities with at
    most one centred logit. The analytic gradient has an error of its own.
    """
    logits = random(2, 2, 6).double().requires_grad_()
    tokens = tokens_of(logits)
    step = 2.0**-17  # the cube root of u, near which the two errors balance
    z = logits.detach()
    values = (
        bounds.entropy_bound(z, FP64).max()
        + bounds.log_softmax_bound(z, exact_logprobs(z, tokens), FP64).max()
    )
    ones = torch.ones(2, 2)
    own = (
        bounds.entropy_gradient_bound(z, ones, FP64).max()
        + bounds.log_softmax_gradient_bound(z, tokens, ones, FP64).max()
    )
    third = 5 * float(1 + z.max() - z.min())
    limit = step**2 / 6 * third + float(values) / step + float(own)
    assert torch.autograd.gradcheck(
        lambda x: function(x, tokens), logits, eps=step, atol=limit, rtol=0.0
    )


# Entropy and shift


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 1000, LARGE])
def test_uniform_logits_have_an_entropy_of_log_v(vocabulary: int) -> None:
    logits = torch.full((1, 1, vocabulary), -7.3)
    want = torch.tensor([[math.log(vocabulary)]], dtype=torch.float64)
    within(got=entropy(logits), want=want, limit=bounds.entropy_bound(logits))


def test_entropy_lies_between_zero_and_log_v() -> None:
    """Never below 0: it is a sum of terms that are not."""
    for scale in (1.0, 30.0, 1e3, 1e4):
        logits = random(4, 50, 30) * scale
        got = entropy(logits)
        assert (got >= 0).all()
        assert (got.double() <= math.log(30) + bounds.entropy_bound(logits)).all()


def test_shift_aligns_logits_with_the_next_token() -> None:
    tokens = torch.arange(10).view(2, 5)
    logits = tokens[..., None].float().expand(2, 5, 3)
    aligned, targets = shift(logits, tokens)
    same_bits(got=targets, want=tokens[:, 1:])
    same_bits(got=aligned[..., 0] + 1, want=targets.float())
    assert aligned.data_ptr() == logits.data_ptr()  # a view


@both
def test_a_second_derivative_is_refused(function: Function) -> None:
    logits = random(1, 2, 3).requires_grad_()
    value = function(logits, tokens_of(logits))
    (gradient,) = torch.autograd.grad(value.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
