"""Minibatch epochs over one rollout: losses, gradients clipped in FP32, optimizer steps.

The hazards. A mean of micro-batch means weighs short responses more; gradients accumulated in bf16
stop growing; a norm summed in bf16 is off by a third, and the clip with it; one inf in a gradient
makes every weight NaN. So micro-batches are weighted by their tokens, gradients are summed,
measured and clipped in FP32 or wider, and a gradient that is not finite is skipped and counted.

n sequences of a minibatch, T response tokens.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from precision_lib.ppo.losses import RatioReport, policy_loss, ratio_report, value_loss
from precision_lib.scoring.forward import rows_per_forward
from precision_lib.training.failures import NAN_LOSS, RunEnded
from precision_lib.training.forward import ForwardFigures, Sequences, forward
from precision_lib.training.rollout import Experience, TrainingModels
from precision_lib.training.settings import PPOSettings
from precision_lib.training.weights import Weights
from precision_lib.trajectories.transfer import HOST, moved


@dataclass
class Updates:
    """What the updates on one rollout were like; lists have one entry per minibatch.

    Attributes:
        policy_losses, value_losses, gradient_norms: the norm is the one before clipping.
        ratios: reports of each minibatch, before its step.
        skipped: steps that were left out because the gradient was not finite.
        stagnant, watched: values that were the old ones bit by bit after at least one step was
            taken, and how many were looked at.
    """

    policy_losses: list[float] = field(default_factory=list)
    value_losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    ratios: list[RatioReport] = field(default_factory=list)
    skipped: int = 0
    stagnant: int = 0
    watched: int = 0

    @property
    def taken(self) -> int:
        """Optimizer steps so far."""
        return len(self.gradient_norms) - self.skipped

    @property
    def first_log_ratio(self) -> float:
        """Largest |log-ratio| of the first minibatch, before any step: 0."""
        return max(abs(self.ratios[0].smallest_log_ratio), abs(self.ratios[0].largest_log_ratio))


def minibatch_order(settings: PPOSettings, step: int) -> Iterator[Tensor]:
    """Rows of each minibatch: in the order of the rollout in the first epoch, then shuffled."""
    for epoch in range(settings.epochs):
        order = torch.arange(settings.batch_size)
        if epoch:
            seed = zlib.crc32(f"minibatches {settings.seed} {step} {epoch}".encode())
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(settings.batch_size, generator=generator)
        yield from order.split(settings.batch_size // settings.minibatches)


def update(
    models: TrainingModels,
    weights: Weights,
    experience: Experience,
    settings: PPOSettings,
    step: int,
    before_step: Callable[[], None] = lambda: None,
) -> Updates:
    """All optimizer steps on one rollout. Call it inside :func:`runtime.deterministic`.

    Args:
        before_step: called before each optimizer step, the clipped gradient in place.

    Raises:
        RunEnded: a loss is NaN; no step was taken on it.
    """
    updates = Updates()
    for number, rows in enumerate(minibatch_order(settings, step)):
        weights.gradient.zero_()
        _backward(models, weights, experience, settings, rows, updates)
        losses = updates.policy_losses[-1], updates.value_losses[-1]
        if any(math.isnan(loss) for loss in losses):
            raise RunEnded(
                NAN_LOSS,
                f"policy loss {losses[0]}, value loss {losses[1]} in update {number} of step "
                f"{step}",
            )
        norm = clip_gradient(weights.gradient, settings.max_grad_norm)
        updates.gradient_norms.append(norm)
        if not math.isfinite(norm):
            updates.skipped += 1
            continue
        before_step()
        weights.step()
    return updates


def _backward(
    models: TrainingModels,
    weights: Weights,
    experience: Experience,
    settings: PPOSettings,
    rows: Tensor,
    found: Updates,
) -> None:
    """Gradient of one minibatch into ``weights.gradient``, its figures into ``found``."""
    formats, old = models.configuration, experience.scored
    head = weights.head_weight, weights.head_bias
    mask = experience.given.mask[rows]
    batch = _targets(experience, rows, weights.master.device)
    losses, parts = [0.0, 0.0], []
    most = rows_per_forward(batch.given.tokens.shape[1], weights.working)
    for start in range(0, len(rows), most):
        part = batch.rows(slice(start, start + most))
        figures = forward(weights.working, part.given, formats.kl, head, formats.value)
        both = _losses(figures, part, settings)
        share = int(mask[start : start + most].sum()) / int(mask.sum())
        (share * (both[0] + settings.value_coefficient * both[1])).backward()
        weights.collect_gradient()
        assert figures.values is not None
        parts.append((share, moved(HOST, *both, figures.logprobs, figures.values)))
    for share, (surrogate, regression, _, _) in parts:
        losses = [losses[0] + share * float(surrogate), losses[1] + share * float(regression)]
    new, values = (torch.cat([figures[i] for _, figures in parts]) for i in (2, 3))
    if found.taken:
        same = (values == old.values[rows])[mask]
        found.stagnant += int(same.sum())
        found.watched += same.numel()
    found.policy_losses.append(losses[0])
    found.value_losses.append(losses[1])
    found.ratios.append(ratio_report(new, old.logprobs[rows], mask, settings.clip_range))


@dataclass(frozen=True)
class _Targets:
    """What some rows learn from, on the device of the weights; each [n, T].

    Log-probs and values are the old ones; advantages, with their importance weights, and returns
    are FP32.
    """

    given: Sequences
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, chosen: slice) -> "_Targets":
        tensors = self.logprobs, self.values, self.advantages, self.returns
        return _Targets(self.given.rows(chosen), *(x[chosen] for x in tensors))


def _targets(experience: Experience, rows: Tensor, device: torch.device) -> _Targets:
    """``rows`` of a rollout, by one transfer."""
    given, old = experience.given.rows(rows), experience.scored
    figures = old.logprobs, old.values, experience.weighted_advantages, experience.returns
    tokens, columns, mask, *there = moved(
        device, given.tokens, given.columns, given.mask, *(x[rows] for x in figures)
    )
    return _Targets(Sequences(tokens, given.first, columns, mask), *there)


def _losses(figures: ForwardFigures, old: _Targets, settings: PPOSettings) -> tuple[Tensor, Tensor]:
    """Policy and value loss of some rows, each a mean over their tokens."""
    assert figures.values is not None
    mask, clip_ranges = old.given.mask, (settings.clip_range, settings.value_clip_range)
    return (
        policy_loss(figures.logprobs, old.logprobs, old.advantages, mask, clip_ranges[0]),
        value_loss(figures.values, old.values, old.returns, mask, clip_ranges[1]),
    )


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
