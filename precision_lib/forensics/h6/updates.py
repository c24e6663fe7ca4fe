"""Optimizer steps of a policy whose weights are stored in several formats at once.

The hazard. Two runs that store their weights in two formats part: their gradients differ, and then
everything does. So the steps are computed once, at FP32 masters, and every stored set of weights
gets the same steps. What then differs is what the storage lost.

N sequences, L tokens of the longest, K sequences of a prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.frozen import Frozen
from precision_lib.formats import get_format
from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.ppo.advantages import group_advantages
from precision_lib.ppo.losses import policy_loss
from precision_lib.scoring.forward import forward, rows_per_forward
from precision_lib.scoring.scorer import GOLDEN

CLIP_RANGE = 0.2
#: Of AdamW: torch's own defaults, which TRL, verl and OpenRLHF leave as they are.
BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class H6Settings:
    """What H6 measures on.

    Attributes:
        prompts: groups of the frozen trajectories, at most as many as there are; the first sequence
            of each is the one whose log-probs are compared.
        steps: optimizer steps.
        sequences: of the minibatch of a step, each of another prompt while there are enough.
        repeated: steps that the control takes once more.
        learning_rate: of AdamW without weight decay; 1e-6 is what TRL's GRPO and verl default to.
        seed: of the resampling.
    """

    prompts: int = 16
    steps: int = 6
    sequences: int = 8
    repeated: int = 1
    learning_rate: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise ValueError(f"prompts = {self.prompts}: an interval over prompts needs 2 or more")
        if not 1 <= self.repeated <= self.steps:
            raise ValueError(f"repeated = {self.repeated} must be 1 to steps = {self.steps}")
        if self.sequences < 1:
            raise ValueError(f"sequences = {self.sequences} must be at least 1")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate = {self.learning_rate} must be positive and finite")


#: A first look.
QUICK = H6Settings(prompts=8, steps=3)


@dataclass(frozen=True)
class Batch:
    """Frozen sequences to learn from.

    Attributes:
        tokens: [N, L] int64, right-padded. mask: [N, L-1] bool, True for a response token.
        logprobs: [N, L-1] FP32, those of the frozen policy.
        advantages: [N, L-1] FP32, the group advantage of each token's sequence.
    """

    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    advantages: Tensor

    def rows(self, chosen: Tensor) -> "Batch":
        """Some sequences [n], on the device of ``chosen``."""
        return Batch(*(x[chosen] for x in vars(self).values()))

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(x.to(device) for x in vars(self).values()))


def batch_of(frozen: Frozen, prompts: int) -> tuple[Batch, int]:
    """(the first ``prompts`` groups on the CPU, one after the other, K); fewer where fewer are.

    Raises:
        ValueError: groups of one sequence, whose advantages are all 0.
    """
    size = int(frozen.manifest.settings["samples_per_prompt"])
    if size < 2:
        raise ValueError(
            "samples_per_prompt = 1: a group of one sequence has no advantage to learn from; "
            "freeze 2 or more"
        )
    length = max(shard.tokens.shape[1] for shard in frozen.shards)

    def joined(name: str, wide: int) -> Tensor:
        parts = (getattr(shard, name).cpu() for shard in frozen.shards)
        padded = [torch.nn.functional.pad(x, (0, wide - x.shape[1])) for x in parts]
        return torch.cat(padded)[: prompts * size]

    rewards = torch.cat([shard.rewards.cpu() for shard in frozen.shards])[: prompts * size]
    mask = joined("mask", length - 1)
    advantages = group_advantages(rewards.view(-1, size)).flatten()
    each = torch.where(mask, advantages.unsqueeze(1), 0.0)
    return Batch(joined("tokens", length), mask, joined("logprobs", length - 1), each), size


def minibatch(step: int, prompts: int, size: int, sequences: int) -> Tensor:
    """Rows of the minibatch of a step: prompt after prompt, then the next sequence of each."""
    numbers = torch.arange(sequences) + step * sequences
    return (numbers % prompts) * size + numbers // prompts % size


def apply_step(stored: Tensor, step: Tensor) -> Tensor:
    """stored + step: the FP32 sum, rounded to nearest once in the format of ``stored``.

    Args:
        stored: any shape and floating-point format. step: FP32, the same shape.
    """
    return (stored.float() + step).to(stored.dtype)


def policy_gradient(model: Any, batch: Batch) -> list[Tensor]:
    """FP32 gradient of PPO's clipped surrogate over the batch, a tensor for each parameter.

    Log-softmax, loss and the sum over micro-batches are FP32. Call it inside
    ``runtime.deterministic``.

    Args:
        model: with parameters that require gradients, in the format of the policy.
        batch: on the device of the model's input.
    """
    parameters = list(model.parameters())
    gradient = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    first, count = int(batch.mask.any(0).int().argmax()), float(batch.mask.sum())
    for chosen in torch.arange(len(batch.tokens), device=batch.tokens.device).split(
        rows_per_forward(batch.tokens.shape[1], model)
    ):
        part = batch.rows(chosen)
        logprobs = forward(model, part.tokens, first, (GOLDEN,)).logprobs[GOLDEN]
        old, advantages, mask = (x[:, first:] for x in (part.logprobs, part.advantages, part.mask))
        loss = policy_loss(logprobs, old, advantages, mask, CLIP_RANGE, count)
        loss.backward()
        for total, parameter in zip(gradient, parameters, strict=True):
            if parameter.grad is not None:
                total.add_(parameter.grad)
                parameter.grad = None
    return gradient


class Steps:
    """AdamW's steps by themselves: torch's optimizer over parameters that are put back to 0.

    The step does not depend on the parameters, since there is no weight decay.
    """

    def __init__(self, like: Sequence[Tensor], learning_rate: float) -> None:
        self.taken = [torch.zeros_like(x, dtype=torch.float32) for x in like]
        self.optimizer = torch.optim.AdamW(
            self.taken, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0
        )

    def of(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """The FP32 step of each parameter; valid until the next call."""
        for step, slope in zip(self.taken, gradient, strict=True):
            step.detach().zero_()
            step.grad = slope
        self.optimizer.step()
        return self.taken


@dataclass
class Stored:
    """Weights in the formats that they are stored in, and the FP32 masters beside them.

    Attributes:
        masters: FP32 model that the gradients are taken at; updated by an addition of its own.
        weights: format to a tensor for each parameter, in it.
        working: model in the policy's format, or that of whatever is evaluated.
    """

    masters: Any
    weights: dict[str, list[Tensor]]
    working: Any

    def show(self, fmt: str | None) -> Any:
        """The working model in FP32 with the stored weights; None: with the masters."""
        set_parameters(self.working, self.masters, GOLDEN)
        if fmt is not None:
            for parameter, x in zip(self.working.parameters(), self.weights[fmt], strict=True):
                parameter.data = x.float()
        return self.working.requires_grad_(False)


#: Called with (format, stored weights before a step, after it, the step) of each parameter.
Seen = Callable[[str, Tensor, Tensor, Tensor], None]


def open_stored(original: Any, formats: Sequence[str]) -> Stored:
    """The weights of an FP32 model, which is left alone, stored in each format."""
    weights = {
        fmt: [p.detach().to(get_format(fmt).dtype, copy=True) for p in original.parameters()]
        for fmt in formats
    }
    return Stored(working_copy(original), weights, working_copy(original))


def take_step(stored: Stored, policy: str, batch: Batch, steps: Steps, seen: Seen) -> bool:
    """One optimizer step of masters and stored weights; False where it was skipped.

    As in training, a gradient that is not finite is skipped.

    Args:
        policy: format that the gradient is computed in.
        batch: on the device of the model's input.
    """
    set_parameters(stored.working, stored.masters, policy)
    stored.working.requires_grad_(True)
    gradient = policy_gradient(stored.working, batch)
    if not all(bool(g.isfinite().all()) for g in gradient):
        return False
    moves = steps.of(gradient)
    with torch.no_grad():
        for number, master in enumerate(stored.masters.parameters()):
            for fmt, weights in stored.weights.items():
                old, move = weights[number], moves[number].detach()
                weights[number] = apply_step(old, move)
                seen(fmt, old, weights[number], move)
            master.data = master.data + moves[number].detach()
    return True
