"""A pipeline of random models of two layers, small enough to freeze and replay in a moment.

The hazard of a random model is that its numbers say nothing about a trained one; here only code
paths, bits and files are looked at.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from precision_lib.models.loading import Checkpoint, parameter_digest, working_copy
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.reward_model import RewardModel
from precision_lib.runtime import deterministic
from tests.unit.conftest import POSITIONS, byte_tokenizer, random_model


def random_checkpoint(architecture: str = "Llama", **changes: Any) -> Checkpoint:
    """A causal LM in memory; the same bits whenever it is made."""
    tokenizer = byte_tokenizer()
    model = random_model(
        architecture, len(tokenizer), attn_implementation="eager", **changes
    ).requires_grad_(False)
    return Checkpoint(model, tokenizer, architecture, parameter_digest(model))


def random_reward() -> RewardModel:
    """A scalar Qwen3 reward model that reads the policy's own ids."""
    import transformers

    tokenizer = byte_tokenizer()
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        num_labels=1,
        attn_implementation="eager",
    )
    with deterministic(1):
        model = transformers.Qwen3ForSequenceClassification(config).eval().requires_grad_(False)
    return RewardModel(model, tokenizer, "random", parameter_digest(model))


def random_pipeline(architecture: str = "Llama", *, moved: float = 0.0) -> Pipeline:
    """Policy, reference, reward and no value head.

    Args:
        moved: 0 for a reference that is the policy's own object; otherwise the reference's
            parameters are the policy's times ``1 + moved``.
    """
    policy = random_checkpoint(architecture)
    reference = policy
    if moved:
        model = working_copy(policy.model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + moved)
        reference = dataclasses.replace(
            policy, model=model, name="moved", sha256=parameter_digest(model)
        )
    return Pipeline(policy, reference, random_reward(), None)


def files_of(directory: Path) -> dict[str, bytes]:
    """Every file below ``directory``, hidden ones too, by relative path."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
