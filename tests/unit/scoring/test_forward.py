"""What the LM head reads is what is handed out, and pads to the right change no real token."""

from types import SimpleNamespace

import pytest
import torch

from precision_lib.runtime import deterministic
from precision_lib.scoring.forward import (
    LOGITS_BYTES,
    rows_per_forward,
    trunk,
    trunk_and_logits,
    vocabulary_of,
)
from tests.unit.conftest import ARCHITECTURES
from tests.unit.small_pipelines import random_checkpoint

TOKENS = torch.arange(24).view(2, 12) * 7 % 257


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_hidden_states_are_what_the_head_reads(architecture: str) -> None:
    """Bitwise: the head of the model, applied to them, gives the logits of the same forward."""
    model = random_checkpoint(architecture).model
    with torch.no_grad(), deterministic():
        hidden, logits = trunk_and_logits(model, TOKENS)
        assert hidden.shape == (2, 12, 32)
        assert torch.equal(model.get_output_embeddings()(hidden), logits)
        assert torch.equal(model(input_ids=TOKENS, use_cache=False).logits, logits)
        assert torch.equal(trunk(model, TOKENS), hidden)
        embedded = model.get_input_embeddings()(TOKENS)
    assert logits.shape == (2, 12, vocabulary_of(model))
    assert not torch.equal(embedded, hidden)


def test_pads_to_the_right_change_no_real_token() -> None:
    """Bitwise in one batch shape, without an attention mask."""
    model = random_checkpoint().model
    other = TOKENS.clone()
    other[:, 9:] = 3
    with torch.no_grad(), deterministic():
        first, second = (trunk_and_logits(model, tokens) for tokens in (TOKENS, other))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[:, :9], b[:, :9])
        assert not torch.equal(a[:, 9:], b[:, 9:])


def test_the_hook_is_gone_afterwards_also_when_the_forward_fails() -> None:
    model = random_checkpoint().model
    trunk_and_logits(model, TOKENS)
    with pytest.raises(IndexError):
        trunk_and_logits(model, TOKENS + 10_000)
    assert not model.base_model._forward_hooks


def test_gradients_reach_the_parameters() -> None:
    model = random_checkpoint().model.requires_grad_(True)
    with deterministic():
        hidden, logits = trunk_and_logits(model, TOKENS)
        (hidden.sum() + logits.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_without_a_head_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="LlamaModel has no trunk below its LM head"):
        trunk_and_logits(random_checkpoint().model.base_model, TOKENS)


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
@pytest.mark.parametrize(("length", "vocabulary"), [(160, 2048), (512, 2048), (160, 151_936)])
def test_rows_follow_from_the_bytes_of_the_logits(
    length: int, vocabulary: int, device: str
) -> None:
    embedding = SimpleNamespace(num_embeddings=vocabulary)
    model = SimpleNamespace(device=torch.device(device), get_input_embeddings=lambda: embedding)
    rows, limit = rows_per_forward(length, model), LOGITS_BYTES.get(device, LOGITS_BYTES["cpu"])
    assert rows >= 1
    assert rows == 1 or rows * length * vocabulary * 4 <= limit
    assert (rows + 1) * length * vocabulary * 4 > limit
