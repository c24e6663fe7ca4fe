"""The arguments of the objective functions, one declaration for each: names, order and types.

An oracle takes them as numpy arrays, a bound and a planted fault as tensors; ``taking`` gives each
the function's own signature, so that its code is its expression alone. A is a floating-point
array, M a bool or integer one; ``mask[b, t]`` is True for a real token.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

A = TypeVar("A")
M = TypeVar("M")
R = TypeVar("R")


@dataclass(frozen=True)
class Aggregate(Generic[A, M]):
    """Of a mean over tokens or sequences; values and mask [B, T]."""

    values: A
    mask: M
    mode: str
    denominator: float | None


@dataclass(frozen=True)
class SequenceRatio(Generic[A, M]):
    """Of a ratio for each sequence; all [B, T]."""

    logprobs: A
    old_logprobs: A
    mask: M


@dataclass(frozen=True)
class Weights(Generic[A, M]):
    """Of importance weights; log-probs and mask [B, T]."""

    train_logprobs: A
    rollout_logprobs: A
    mask: M
    level: str
    mode: str
    cap: float


@dataclass(frozen=True)
class PolicyLoss(Generic[A, M]):
    """Of PPO's policy loss; all but the clip range [B, T]."""

    logprobs: A
    old_logprobs: A
    advantages: A
    mask: M
    clip_range: float


@dataclass(frozen=True)
class ValueLoss(Generic[A, M]):
    """Of PPO's value loss; all but the clip range [B, T]."""

    values: A
    old_values: A
    returns: A
    mask: M
    clip_range: float


@dataclass(frozen=True)
class Clipped(Generic[A, M]):
    """Of GSPO and CISPO; [B, T], for GSPO advantages [B]."""

    logprobs: A
    old_logprobs: A
    advantages: A
    mask: M
    clip_low: float
    clip_high: float


@dataclass(frozen=True)
class Dapo(Clipped[A, M]):
    """Of DAPO, whose harmful tokens may have a second clip."""

    dual_clip: float | None


@dataclass(frozen=True)
class Linear(Generic[A, M]):
    """Of log-probs from hidden states [B, T, H], weight [V, H] and tokens [B, T]."""

    hidden: A
    weight: A
    tokens: M
    temperature: float


@dataclass(frozen=True)
class Dpo(Generic[A]):
    """Of the loss of direct preference optimisation, all [B]."""

    policy_chosen: A
    policy_rejected: A
    ref_chosen: A
    ref_rejected: A
    beta: float


@dataclass(frozen=True)
class Divergence(Generic[A]):
    """Of a divergence; logits [..., V]."""

    student_logits: A
    teacher_logits: A
    beta: float


def taking(arguments: type) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A decorator: the function takes the fields of ``arguments``, then its own other parameters.

    By position or by keyword. Its signature names them, because a target offers an optional
    argument that way.
    """

    def decorated(function: Callable[..., R]) -> Callable[..., R]:
        own = list(inspect.signature(function).parameters.values())[1:]
        shared = list(inspect.signature(arguments).parameters.values())
        signature = inspect.Signature([*shared, *own])
        names = [field.name for field in fields(arguments)]

        @functools.wraps(function)
        def called(*positional: Any, **named: Any) -> R:
            given = signature.bind(*positional, **named).arguments
            mine = {name: given.pop(name) for name in names if name in given}
            return function(arguments(**mine), **given)

        called.__signature__ = signature  # type: ignore[attr-defined]  # of a function
        return called

    return decorated
