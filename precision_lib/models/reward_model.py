"""Load a scalar reward model in FP32, and read its score at the last real token.

The hazards. A sequence classifier of transformers looks for the last token by its pad id: where
none is set it refuses batches, and where the pad token is the end-of-text token it may read the
score of another position. And asking for a classifier from a checkpoint without a score head gives
one with *random* weights and a warning. So the head is run here, at a position that the caller
knows, and a checkpoint that lacks any weight is refused.

N sequences, R tokens of the longest one, right-padded, H hidden size. Attention is causal, so what
stands to the right of a token has no part in its score, and no attention mask is needed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.models.embedded import REWARD_DIR
from precision_lib.models.loading import (
    EMBEDDED,
    CheckpointError,
    load_pretrained,
    parameter_digest,
    settled,
    target_device,
)
from precision_lib.models.placement import DeviceMap


@dataclass(frozen=True)
class RewardModel:
    """A sequence classifier with one label, and its tokenizer.

    Attributes:
        model: transformers model, FP32 parameters, eager attention, eval mode, on its device(s).
        tokenizer: its tokenizer.
        name: what the user asked for.
        sha256: digest of names, shapes and bytes of all FP32 parameters.
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str


def load_reward_model(
    name: str = EMBEDDED, device: str = "cpu", device_map: DeviceMap = None
) -> RewardModel:
    """Load a reward model and its tokenizer by name or directory.

    Args:
        name: ``"embedded"``, a directory written by ``save_pretrained``, or a model hub name of a
            causal ``...ForSequenceClassification`` with one label (Llama, Qwen3, GPT-2, ...).
        device: ``"cpu"`` or ``"cuda"``.
        device_map: spread the model over several devices instead, as ``load_checkpoint`` does.

    Raises:
        CheckpointError: missing, offline, truncated, without a tokenizer, with another number of
            labels than one, with weights missing, of an architecture without a ``score`` head, or
            larger than the devices of ``device_map``.
        NoDeviceError: no CUDA device. ValueError: unknown device, or both device and map.
    """
    from transformers import AutoModelForSequenceClassification

    target = target_device(device, device_map)
    source = str(REWARD_DIR) if name == EMBEDDED else name
    model, tokenizer, report = load_pretrained(
        AutoModelForSequenceClassification,
        source,
        "a reward model (sequence classifier)",
        device_map,
    )
    _check_head(model, sorted(report["missing_keys"]), source)
    model = settled(model, target)
    return RewardModel(model, tokenizer, name, parameter_digest(model))


def _check_head(model: Any, missing: list[str], source: str) -> None:
    score = getattr(model, "score", None)
    if not isinstance(score, torch.nn.Linear):
        raise CheckpointError(
            f"{source}: {type(model).__name__} has no linear layer 'score' on a causal backbone; "
            "give a reward model such as LlamaForSequenceClassification"
        )
    if missing:
        raise CheckpointError(
            f"{source}: the checkpoint lacks {', '.join(missing)}, which would be random numbers; "
            "give a trained reward model, not the language model that it began as"
        )
    if model.config.num_labels != 1 or score.out_features != 1:
        raise CheckpointError(
            f"{source}: the model has {model.config.num_labels} labels, a reward model has one; "
            "save it with num_labels=1"
        )


def score_tokens(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Scores of N sequences, read at the last real token of each.

    score = w . h[length - 1] (+ bias), h the output of the backbone after its final norm.

    Args:
        model: the transformers model of a :class:`RewardModel`, or a working copy of it whose
            parameters were cast.
        tokens: [N, R] int64, right-padded with any token.
        lengths: [N] int64, real tokens of each row, 1 to R; on the host, or a GPU is waited for.

    Returns:
        [N] in the model's own format, on the score head's device; neither normalised nor bounded.

    Raises:
        ValueError: for no sequence, lengths that do not fit the tokens, or more tokens than the
            model has positions.
    """
    if tokens.ndim != 2 or tokens.numel() == 0 or lengths.shape != tokens.shape[:1]:
        raise ValueError(
            f"tokens must be [N, R] with N, R >= 1 and lengths [N], got {tuple(tokens.shape)} "
            f"and {tuple(lengths.shape)}"
        )
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > tokens.shape[1]:
        raise ValueError(
            f"lengths must be 1 to {tokens.shape[1]}, the width of tokens, got {low} to {high}"
        )
    positions = getattr(model.config, "max_position_embeddings", high)
    if high > positions:
        raise ValueError(
            f"a sequence takes {high} of the reward model's {positions} positions; use shorter "
            "prompts or responses"
        )
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    row = torch.arange(len(tokens), device=hidden.device)  # behind the last layer, not the first
    scores: Tensor = model.score(hidden[row, lengths.to(hidden.device) - 1]).squeeze(-1)
    return scores


def reward_inputs(
    reward: RewardModel, tokenizer: Any, sequences: list[list[int]]
) -> list[list[int]]:
    """The policy's token lists as the reward model reads them.

    The same ids where both tokenizers have one vocabulary. Otherwise each sequence is decoded
    without special tokens and encoded by the reward model's tokenizer, with its special tokens.

    Args:
        tokenizer: the policy's.
        sequences: N token lists of prompt and response, without padding.

    Raises:
        ValueError: when a sequence has no token (left).
    """
    if reward.tokenizer.get_vocab() == tokenizer.get_vocab():
        encoded = [list(sequence) for sequence in sequences]
    else:
        encoded = [
            list(
                reward.tokenizer.encode(
                    tokenizer.decode(
                        sequence, skip_special_tokens=True, clean_up_tokenization_spaces=False
                    )
                )
            )
            for sequence in sequences
        ]
    for number, (before, after) in enumerate(zip(sequences, encoded, strict=True)):
        if not after:
            raise ValueError(
                f"sequence {number} ({len(before)} tokens of the policy) is empty text for the "
                "reward model; give prompts that hold text"
            )
    return encoded
