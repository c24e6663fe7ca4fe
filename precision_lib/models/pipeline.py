"""The four FP32 models that every precision configuration starts from.

Where policy and reference are the same checkpoint they are the same object here, so that a distance
between them can only come from formats and training.
"""

from dataclasses import dataclass
from typing import Any

from precision_lib.models.embedded import VALUE_HEAD_FILE
from precision_lib.models.loading import EMBEDDED, Checkpoint, CheckpointError, load_checkpoint
from precision_lib.models.placement import DeviceMap
from precision_lib.models.reward_model import RewardModel, load_reward_model
from precision_lib.models.value_head import ValueHead, load_value_head


@dataclass(frozen=True)
class Pipeline:
    """Policy, reference, reward model and value head, all FP32.

    Attributes:
        policy: the causal LM to be trained.
        reference: the causal LM that the KL penalty measures from.
        reward: scores whole sequences.
        value_head: on the policy's trunk, fitted to this reward; None where none was shipped, that
            is unless policy and reward model are both embedded.
    """

    policy: Checkpoint
    reference: Checkpoint
    reward: RewardModel
    value_head: ValueHead | None

    @property
    def models(self) -> tuple[Any, Any, Any]:
        """The transformers models of policy, reference and reward."""
        return self.policy.model, self.reference.model, self.reward.model


def load_pipeline(
    model: str = EMBEDDED,
    reward_model: str = EMBEDDED,
    reference_model: str | None = None,
    device: str = "cpu",
    device_map: DeviceMap = None,
) -> Pipeline:
    """Load all models by name or directory.

    Args:
        model: of the policy. reward_model: of the reward. Both as the loading functions take them.
        reference_model: None for the policy's own checkpoint, the same object.
        device: ``"cpu"`` or ``"cuda"``; the value head stays on the CPU.
        device_map: spread each model over several devices instead, as ``load_checkpoint`` does;
            one after the other, so that each finds less memory free.

    Raises:
        CheckpointError: a checkpoint cannot be loaded, or the reference has other tokens.
        NoDeviceError: no CUDA device. ValueError: unknown device, or both device and map.
    """
    policy = load_checkpoint(model, device, device_map)
    reference = policy
    if reference_model is not None and reference_model != model:
        reference = load_checkpoint(reference_model, device, device_map)
        _check_same_tokens(policy, reference)
    shipped = model == EMBEDDED and reward_model == EMBEDDED
    head = load_value_head(VALUE_HEAD_FILE) if shipped else None
    return Pipeline(policy, reference, load_reward_model(reward_model, device, device_map), head)


def _check_same_tokens(policy: Checkpoint, reference: Checkpoint) -> None:
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise CheckpointError(
            f"reference {reference.name} has another vocabulary than policy {policy.name}; "
            "log-probs of one token list mean nothing in both, give a reference of the same family"
        )
