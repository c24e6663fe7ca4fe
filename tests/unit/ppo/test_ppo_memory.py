"""How much memory log-probs and entropies take beyond their inputs, and in which pieces."""

import pytest
import torch
from torch import Tensor

from precision_lib.ppo import entropy, logit_pieces, token_logprobs
from precision_lib.ppo.kl import full_kl
from precision_lib.ppo.logprobs import shift
from tests.benchmarks.measure import MIB, peak_mib
from tests.unit.ppo.layouts import random
from tests.unit.ppo.test_ppo_softmax import Function, both, tokens_of


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extra_memory_is_two_mib_and_in_backward_one_gradient_more(
    function: Function, dtype: torch.dtype
) -> None:
    """The docstring promises two; the logits in FP32 are four."""
    logits = random(2, 16, 32_000).to(dtype)
    tokens = tokens_of(logits)
    assert 0 < peak_mib(lambda: function(logits, tokens), "cpu") <= 2
    logits.requires_grad_()
    upstream = torch.ones(2, 16)
    peak = peak_mib(lambda: torch.autograd.grad(function(logits, tokens), logits, upstream), "cpu")
    gradient = logits.numel() * logits.element_size() / MIB
    assert gradient < peak <= gradient + 2


@both
def test_shifted_logits_need_no_more_memory(function: Function) -> None:
    logits = random(2, 16, 32_000)
    shifted, targets = shift(logits, tokens_of(logits))
    assert 0 < peak_mib(lambda: function(shifted, targets), "cpu") <= 2


def test_the_size_of_a_piece_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at a time, a sequence, two of three, all three: values and gradients."""

    def figures(fitting: int) -> list[Tensor]:
        monkeypatch.setitem(logit_pieces._BUFFER_BYTES, "cpu", fitting * 515 * 4)
        generator = torch.Generator().manual_seed(0)
        whole, other = torch.randn(2, 3, 8, 515, generator=generator)
        logits = whole[:, :-1].requires_grad_(True)
        assert (
            logit_pieces.row_buffer(logit_pieces.as_sequences(logits), torch.float32).shape[:2]
            == {
                1: (1, 1),
                7: (1, 7),
                15: (2, 7),
                99: (3, 7),
            }[fitting]
        )
        tokens = torch.randint(515, (3, 7), generator=generator)
        values = [token_logprobs(logits, tokens), entropy(logits)]
        gradients = [torch.autograd.grad(v.sum(), logits)[0] for v in values]
        return [*values, *gradients, full_kl(logits, other[:, :-1])]

    want = figures(1)
    for fitting in (7, 15, 99):
        got = figures(fitting)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
