"""An LM head in a format of its own: only the last product changes, and it goes away again."""

import pytest
import torch
from torch import Tensor

from precision_lib.models.lm_head import parameter_formats, put_head
from precision_lib.models.loading import Checkpoint, set_parameters, working_copy
from precision_lib.runtime import deterministic
from precision_lib.scoring.forward import trunk_and_logits
from tests.unit.small_pipelines import random_pipeline

TOKENS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def policy() -> Checkpoint:
    return random_pipeline().policy


def _forward(policy: Checkpoint, working: object, fmt: str) -> tuple[Tensor, Tensor]:
    set_parameters(working, policy.model, fmt)
    with deterministic(), torch.no_grad():
        return trunk_and_logits(working, TOKENS)


@pytest.mark.parametrize(("trunk", "head"), [("bf16", "fp32"), ("fp32", "bf16"), ("fp16", "fp32")])
def test_logits_are_the_product_in_the_heads_format(
    policy: Checkpoint, trunk: str, head: str
) -> None:
    """From hidden states of the trunk's format and a cast of the FP32 matrix, tied or not."""
    working = working_copy(policy.model)
    hidden, logits = _forward(policy, working, f"{trunk}/{head}")
    usual, _ = _forward(policy, working, trunk)
    assert torch.equal(hidden, usual), "the trunk must not notice"
    dtype = logits.dtype
    assert dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[head]
    matrix = policy.model.get_output_embeddings().weight.to(dtype).float()
    with deterministic():
        wanted = torch.nn.functional.linear(hidden.to(dtype).float(), matrix).to(dtype)
    assert torch.equal(logits, wanted)


def test_the_head_of_before_comes_back(policy: Checkpoint) -> None:
    working = working_copy(policy.model)
    _, before = _forward(policy, working, "bf16")
    _, other = _forward(policy, working, "bf16/fp32")
    assert parameter_formats(working) == {"bf16"}
    _, after = _forward(policy, working, "bf16")
    assert torch.equal(before, after)
    assert not torch.equal(before.float(), other)
    tied = working.get_input_embeddings().weight is working.get_output_embeddings().weight
    assert tied == policy.model.config.tie_word_embeddings


def test_the_head_moves_with_the_policy(policy: Checkpoint) -> None:
    """Along a direction of training, as the rest of the model does."""
    direction = {n: torch.ones_like(p) for n, p in policy.model.named_parameters()}
    working = working_copy(policy.model)
    set_parameters(working, policy.model, "bf16/fp32", direction, 0.5)
    matrix = policy.model.get_output_embeddings().weight
    assert torch.equal(working.get_output_embeddings().weight, matrix + 0.5)


def test_a_model_without_a_linear_head_is_refused() -> None:
    model = random_pipeline().reward.model
    with pytest.raises(TypeError, match="no linear LM head, so lm_head = 'fp32'"):
        put_head(model, model, "fp32")
