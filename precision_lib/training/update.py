"""Minibatch epochs over one rollout: losses, gradients clipped in FP32, optimizer steps.

The hazards. A mean of micro-batch means weighs short responses more; gradients accumulated in bf16
stop growing; a norm summed in bf16 is off by a third, and the clip with it; one inf in a gradient
makes every weight NaN. So micro-batches are weighted by their tokens, gradients are summed,
measured and clipped in FP32 or wider, and a gradient that is not finite is skipped and counted.

n sequences of a minibatch, T response tokens.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from precision_lib.ppo.losses import RatioReport, policy_loss, ratio_report, value_loss
from precision_lib.training.failures import NAN_LOSS, RunEnded
from precision_lib.training.forward import forward
from precision_lib.training.rollout import Experience, Models
from precision_lib.training.settings import PPOSettings
from precision_lib.training.weights import Weights
from precision_lib.trajectories.teacher_forcing import rows_per_forward, vocabulary_of


@dataclass
class Updates:
    """What the updates on one rollout were like; lists have one entry per optimizer step.

    Attributes:
        policy_losses, value_losses, gradient_norms: the norm is the one before clipping.
        ratios: reports of each minibatch, before its step.
        skipped: steps that were left out because the gradient was not finite.
        first_log_ratio: largest |log-ratio| of the first minibatch, before any step: 0.
        stagnant, watched: values that were the old ones bit by bit after at least one step, and
            how many were looked at.
    """

    policy_losses: list[float] = field(default_factory=list)
    value_losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    ratios: list[RatioReport] = field(default_factory=list)
    skipped: int = 0
    first_log_ratio: float = 0.0
    stagnant: int = 0
    watched: int = 0


def minibatch_order(settings: PPOSettings, step: int) -> Iterator[tuple[int, Tensor]]:
    """(epoch, rows) of each minibatch: in the order of the rollout first, then shuffled."""
    for epoch in range(settings.epochs):
        order = torch.arange(settings.batch_size)
        if epoch:
            seed = zlib.crc32(f"minibatches {settings.seed} {step} {epoch}".encode())
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(settings.batch_size, generator=generator)
        for rows in order.split(settings.batch_size // settings.minibatches):
            yield epoch, rows


def update(
    models: Models,
    weights: Weights,
    experience: Experience,
    settings: PPOSettings,
    step: int,
    check: Callable[[Weights], None] = lambda _weights: None,
) -> Updates:
    """All optimizer steps on one rollout. Call it inside :func:`runtime.deterministic`.

    Args:
        check: called before each step, the clipped gradient in place.

    Raises:
        RunEnded: the loss is NaN; no step was taken on it.
    """
    found = Updates()
    for number, (_, rows) in enumerate(minibatch_order(settings, step)):
        weights.gradient.zero_()
        _backward(models, weights, experience, settings, rows, found, first=number == 0)
        if found.policy_losses[-1] != found.policy_losses[-1] or (
            found.value_losses[-1] != found.value_losses[-1]
        ):
            raise RunEnded(
                NAN_LOSS,
                f"policy loss {found.policy_losses[-1]}, value loss {found.value_losses[-1]} in "
                f"update {number} of step {step}",
            )
        norm = clip_gradient(weights.gradient, settings.max_grad_norm)
        found.gradient_norms.append(norm)
        if not norm < float("inf"):
            found.skipped += 1
            continue
        check(weights)
        weights.step()
    return found


def _backward(
    models: Models,
    weights: Weights,
    experience: Experience,
    settings: PPOSettings,
    rows: Tensor,
    found: Updates,
    *,
    first: bool,
) -> None:
    """Gradient of one minibatch into ``weights.gradient``, its figures into ``found``."""
    formats, old = models.configuration, experience.scored
    width, vocabulary = experience.given.tokens.shape[1], vocabulary_of(weights.working)
    total = int(experience.given.mask[rows].sum())
    losses, parts = [0.0, 0.0], []
    for part in rows.split(min(len(rows), rows_per_forward(width, vocabulary))):
        given = experience.given.rows(part)
        figures = forward(
            weights.working,
            given,
            formats.kl,
            (weights.head_weight, weights.head_bias),
            formats.value,
        )
        assert figures.values is not None
        share = int(given.mask.sum()) / total
        surrogate = policy_loss(
            figures.logprobs,
            old.logprobs[part],
            experience.advantages[part],
            given.mask,
            settings.clip_range,
        )
        regression = value_loss(
            figures.values,
            old.values[part],
            experience.returns[part],
            given.mask,
            settings.value_clip_range,
        )
        (share * (surrogate + settings.value_coefficient * regression)).backward()
        weights.collect_gradient()
        losses[0] += share * float(surrogate.detach())
        losses[1] += share * float(regression.detach())
        parts.append((figures.logprobs.detach(), old.logprobs[part], given.mask))
        if not first:
            same = (figures.values.detach() == old.values[part])[given.mask]
            found.stagnant += int(same.sum())
            found.watched += same.numel()
    found.policy_losses.append(losses[0])
    found.value_losses.append(losses[1])
    new, before, mask = (torch.cat(x) for x in zip(*parts, strict=True))
    found.ratios.append(ratio_report(new, before, mask, settings.clip_range))
    if first:
        report = found.ratios[-1]
        found.first_log_ratio = max(-report.smallest_log_ratio, report.largest_log_ratio)


def clip_gradient(gradient: Tensor, max_norm: float) -> float:
    """Scale ``gradient`` in place so that its norm is at most ``max_norm``; the norm before.

    The squares are summed in float64. A norm that is not finite leaves the gradient as it is.

    Args:
        gradient: [P] FP32. max_norm: > 0.
    """
    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if max_norm < norm < float("inf"):
        gradient.mul_(max_norm / norm)
    return norm
