"""What the functions of today's objectives return, and what they are differentiable in."""

from precision_lib.targets.objectives import FUNCTIONS, OPTIONS, base

_FIRST = {
    "aggregate": "values",
    "sequence_ratio": "logprobs",
    "gspo_loss": "logprobs",
    "cispo_loss": "logprobs",
    "dapo_loss": "logprobs",
    "policy_loss": "logprobs",
    "value_loss": "values",
    "linear_token_logprobs": "hidden",
    "token_logprobs": "logits",
    "dpo_loss": "policy_chosen",
    "jsd": "student_logits",
}
#: A second input that the gradient flows to.
_SECOND = {"linear_token_logprobs": "weight", "dpo_loss": "policy_rejected"}
_LIKE = {
    "sequence_ratio": "mask",
    "importance_weights": "mask",
    "linear_token_logprobs": "tokens",
    "token_logprobs": "tokens",
    "rloo_advantages": "rewards",
    "jsd": "student_logits",
    "gae": "rewards",
}
_CALLED = dict.fromkeys(FUNCTIONS) | {name: function for name, (function, _, _) in OPTIONS.items()}

#: The first input that each is differentiable in; weights and advantages are in none.
DIFFERENTIABLE_IN = {
    name: _FIRST[base or name] for name, base in _CALLED.items() if (base or name) in _FIRST
}
#: Those that a trainer calls backward on.
LOSSES = tuple(
    name for name in DIFFERENTIABLE_IN if name == "aggregate" or base(name).endswith("_loss")
)
#: The input that has the shape of each result; None for a scalar.
SHAPED_LIKE = {name: _LIKE.get(base or name) for name, base in _CALLED.items()}
#: The result has the shape of that input without its last dimension.
WITHOUT_THE_LAST = ("sequence_ratio", "jsd")


def further_sources(name: str) -> dict[str, str]:
    """Part of the result to input, for a second input that the gradient flows to."""
    return {f"gradient_of_{_SECOND[name]}": _SECOND[name]} if name in _SECOND else {}
