"""The functions of today's objectives, beside the nine of PPO; each is optional for a target.

An optional argument of a function is offered when the function's signature names it. It is tested
under a name of its own: ``gae_with_bootstrap`` is ``gae`` called with ``bootstrap``.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from precision_lib import arguments


def _names(declaration: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(declaration))


#: The functions and the keyword arguments with which each is called.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "aggregate": _names(arguments.Aggregate),
    "importance_weights": _names(arguments.Weights),
    "sequence_ratio": _names(arguments.SequenceRatio),
    "gspo_loss": _names(arguments.Clipped),
    "cispo_loss": _names(arguments.Clipped),
    "dapo_loss": _names(arguments.Dapo),
    "linear_token_logprobs": _names(arguments.Linear),
    "rloo_advantages": ("rewards",),
    "dpo_loss": _names(arguments.Dpo),
    "jsd": _names(arguments.Divergence),
}
_DIVIDED = FUNCTIONS | {
    "policy_loss": _names(arguments.PolicyLoss),
    "value_loss": _names(arguments.ValueLoss),
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
    **{
        f"{loss}_with_denominator": (loss, "denominator", (*_DIVIDED[loss], "denominator"))
        for loss in ("policy_loss", "value_loss", "gspo_loss", "cispo_loss", "dapo_loss")
    },
}

#: Every name that a check of today's objectives may bear, and its keyword arguments.
OBJECTIVES: dict[str, tuple[str, ...]] = FUNCTIONS | {
    name: given for name, (_, _, given) in OPTIONS.items()
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
