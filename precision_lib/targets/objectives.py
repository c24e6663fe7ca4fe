"""The functions of today's objectives, beside the nine of PPO; each is optional for a target.

An optional argument of a function is offered when the function's signature names it. It is tested
under a name of its own: ``gae_with_bootstrap`` is ``gae`` called with ``bootstrap``.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_CLIPPED = ("logprobs", "old_logprobs", "advantages", "mask", "clip_low", "clip_high")
_PREFERENCES = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")

#: The functions and the keyword arguments with which each is called.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "aggregate": ("values", "mask", "mode", "denominator"),
    "importance_weights": (
        "train_logprobs",
        "rollout_logprobs",
        "mask",
        "level",
        "mode",
        "cap",
    ),
    "sequence_ratio": ("logprobs", "old_logprobs", "mask"),
    "gspo_loss": _CLIPPED,
    "cispo_loss": _CLIPPED,
    "dapo_loss": (*_CLIPPED, "dual_clip"),
    "linear_token_logprobs": ("hidden", "weight", "tokens", "temperature"),
    "rloo_advantages": ("rewards",),
    "dpo_loss": (*_PREFERENCES, "beta"),
    "jsd": ("student_logits", "teacher_logits", "beta"),
}

#: Name of the test of an optional argument: the function, the argument, all arguments given.
OPTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "token_logprobs_with_temperature": (
        "token_logprobs",
        "temperature",
        ("logits", "tokens", "temperature"),
    ),
    "gae_with_bootstrap": (
        "gae",
        "bootstrap",
        ("rewards", "values", "mask", "gamma", "lam", "bootstrap"),
    ),
    "policy_loss_with_denominator": (
        "policy_loss",
        "denominator",
        ("logprobs", "old_logprobs", "advantages", "mask", "clip_range", "denominator"),
    ),
    "value_loss_with_denominator": (
        "value_loss",
        "denominator",
        ("values", "old_values", "returns", "mask", "clip_range", "denominator"),
    ),
    **{
        f"{loss}_with_denominator": (loss, "denominator", (*FUNCTIONS[loss], "denominator"))
        for loss in ("gspo_loss", "cispo_loss", "dapo_loss")
    },
}

#: Every name that a check of today's objectives may bear, and its keyword arguments.
OBJECTIVES: dict[str, tuple[str, ...]] = FUNCTIONS | {
    name: arguments for name, (_, _, arguments) in OPTIONS.items()
}


def base(name: str) -> str:
    """The function that a name of a check calls: ``gae`` for ``gae_with_bootstrap``."""
    return OPTIONS[name][0] if name in OPTIONS else name


def with_options(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """``functions`` and, under the names of :data:`OPTIONS`, those that take the argument."""
    offered = dict(functions)
    for name, (function, argument, _) in OPTIONS.items():
        if function in functions and argument in _parameters(functions[function]):
            offered[name] = functions[function]
    return offered


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a built-in function without a signature
        return {}
