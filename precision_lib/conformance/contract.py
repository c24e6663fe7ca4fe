"""What each function returns, and where its gradient goes: one row for each."""

from dataclasses import dataclass

from precision_lib.targets.objectives import OPTIONS


@dataclass(frozen=True)
class Contract:
    """What the interface says of one function beside its arguments.

    Attributes:
        like: the input whose shape the result has; "" for a scalar.
        sources: the inputs that the gradient flows to.
        constants: inputs of log-probs or advantages that get no gradient.
        is_loss: a loss without a gradient trains nothing, so that it has to have one.
        drops_the_last: the result lacks the last dimension of ``like``.
    """

    like: str = ""
    sources: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    is_loss: bool = False
    drops_the_last: bool = False

    def gradients(self) -> dict[str, str]:
        """Part of the result to the input that it is the gradient of; empty without a gradient."""
        further = {f"gradient_of_{source}": source for source in self.sources[1:]}
        return {"gradient": self.sources[0]} | further if self.sources else {}


_CLIPPED = Contract("", ("logprobs",), ("old_logprobs", "advantages"), is_loss=True)
_FUNCTIONS = {
    "token_logprobs": Contract("tokens", ("logits",)),
    "entropy": Contract("logits", ("logits",), drops_the_last=True),
    "kl_penalty": Contract("policy_logprobs", ("policy_logprobs",)),
    "masked_mean": Contract("", ("x",)),
    "whiten": Contract("x"),
    "gae": Contract("rewards"),
    "group_advantages": Contract("rewards"),
    "policy_loss": _CLIPPED,
    "value_loss": Contract("", ("values",), is_loss=True),
    "aggregate": Contract("", ("values",), is_loss=True),
    "importance_weights": Contract("mask", constants=("train_logprobs", "rollout_logprobs")),
    "sequence_ratio": Contract("mask", ("logprobs",), ("old_logprobs",), drops_the_last=True),
    "gspo_loss": _CLIPPED,
    "cispo_loss": _CLIPPED,
    "dapo_loss": _CLIPPED,
    "linear_token_logprobs": Contract("tokens", ("hidden", "weight")),
    "rloo_advantages": Contract("rewards"),
    "dpo_loss": Contract("", ("policy_chosen", "policy_rejected"), is_loss=True),
    "jsd": Contract("student_logits", ("student_logits",), drops_the_last=True),
}
#: Every name that a check may bear: a function's, or that of an optional argument.
CONTRACTS = _FUNCTIONS | {name: _FUNCTIONS[function] for name, (function, _, _) in OPTIONS.items()}
