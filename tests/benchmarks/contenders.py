"""Who is measured: this suite's core, the frameworks' own functions, and plain torch or numpy.

A framework is called through the adapter that ``--target`` uses, so that both speak of the same
function; what it needs in another type or shape (an int64 mask) is made inside the timed step.

In place: OpenRLHF's ``log_probs_from_logits`` divides the logits in place unless the temperature
is 1; it is called with 1, so the logits stay as they are for the next contender.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from precision_lib.targets import adapters
from precision_lib.targets.frameworks import framework
from tests.benchmarks import plain
from tests.benchmarks.timed import Call

Bind = Callable[[Any], Call]


@dataclass(frozen=True)
class Contender:
    """One line of a table.

    Attributes:
        label: as shown.
        source: the distribution that the function comes from.
        bind: takes the case's inputs as attributes, returns the call to time.
    """

    label: str
    source: str
    bind: Bind

    @property
    def kind(self) -> str:
        """``ours``, ``peer`` or ``plain``."""
        if self.source in adapters.NAMES:
            return "peer"
        return "ours" if self.source == OURS else "plain"

    @property
    def version(self) -> str:
        """The installed version, without a local suffix such as ``+cpu``."""
        if self.kind == "peer":
            return framework(self.source).version()
        return version(self.source).split("+")[0]


OURS = "rlhf-precision-forensics"
WHITENS = dict.fromkeys(("verl", "torchtune"), "(whitens as well)")


def _ours(function: str) -> Contender:
    def bind(x: Any) -> Call:
        from precision_lib import ppo

        return partial(getattr(ppo, function), **vars(x))

    return Contender("this suite", OURS, bind)


def _plain(label: str, bind: Bind, source: str = "torch") -> Contender:
    return Contender(f"plain: {label}", source, bind)


def _peer(name: str, bind: Bind, remark: str = "") -> Contender:
    return Contender(f"{name} {remark}".strip(), name, bind)


def _framework(name: str, function: str) -> Bind:
    """The function of the framework's adapter, as ``--target`` calls it."""

    def bind(x: Any) -> Call:
        from precision_lib.targets import load_target

        return partial(load_target(name).functions[function], **vars(x))

    return bind


def _own(name: str, function: str) -> Any:
    """A function of the framework that the interface does not ask for."""
    from precision_lib.targets.frameworks import load

    return load(import_module(f"precision_lib.targets.adapters.{name}").FRAMEWORK)[function]


def _verl_logprobs_packed(x: Any) -> Call:
    function = _own("verl", "logprobs_from_logits")
    flat, shape = x.tokens.flatten(), x.tokens.shape
    return lambda: function(x.logits.flatten(0, 1), flat).view(shape)


def _verl_entropy_chunked(x: Any) -> Call:
    function = _own("verl", "entropy_from_logits_with_chunking")
    return lambda: function(x.logits.flatten(0, 1)).view(x.logits.shape[:-1])


def _openrlhf_entropy_compiled(x: Any) -> Call:
    return partial(_own("openrlhf", "compute_entropy"), x.logits)


def _peers(function: str, *names: str, remarks: dict[str, str] | None = None) -> list[Contender]:
    remarks = remarks or {}
    return [_peer(name, _framework(name, function), remarks.get(name, "")) for name in names]


CONTENDERS = {
    "token_logprobs": (
        _ours("token_logprobs"),
        *_peers("token_logprobs", "trl", "verl"),
        _peer("verl", _verl_logprobs_packed, "(packed [N, V])"),
        *_peers("token_logprobs", "openrlhf", "torchtune"),
        _plain("fp32 log_softmax + gather", plain.log_softmax_gather),
        _plain("cross_entropy", plain.cross_entropy),
    ),
    "entropy": (
        _ours("entropy"),
        *_peers("entropy", "trl", "verl"),
        _peer("verl", _verl_entropy_chunked, "(with chunking)"),
        _peer("openrlhf", _openrlhf_entropy_compiled, "(torch.compile)"),
        _plain("fp32 log_softmax, -sum p log p", plain.entropy),
    ),
    "kl_penalty": (
        _ours("kl_penalty"),
        *_peers("kl_penalty", "verl", "openrlhf"),
        _plain("textbook formula", plain.kl_penalty),
    ),
    "whiten": (
        _ours("whiten"),
        *_peers("whiten", "verl", "torchtune"),
        _plain("textbook formula", plain.whiten),
    ),
    "gae": (
        _ours("gae"),
        *_peers("gae", "verl", "openrlhf", "torchtune", remarks=WHITENS),
        _plain("numpy float64 loop", plain.numpy_gae, "numpy"),
    ),
    "policy_loss": (
        _ours("policy_loss"),
        *_peers("policy_loss", *adapters.NAMES),
        _plain("textbook formula", plain.policy_loss),
    ),
    "value_loss": (
        _ours("value_loss"),
        *_peers("value_loss", "verl", "openrlhf", "torchtune"),
        _plain("textbook formula", plain.value_loss),
    ),
    "dapo_loss": (
        _ours("dapo_loss"),
        *_peers("dapo_loss", "trl", "verl", "openrlhf", "liger"),
        _plain("textbook formula", plain.dapo_loss),
    ),
    "gspo_loss": (
        _ours("gspo_loss"),
        *_peers("gspo_loss", "trl", "verl", "openrlhf", "liger"),
        _plain("textbook formula", plain.gspo_loss),
    ),
    "cispo_loss": (
        _ours("cispo_loss"),
        *_peers("cispo_loss", "trl", "verl", "liger"),
        _plain("textbook formula", plain.cispo_loss),
    ),
    "aggregate": (
        _ours("aggregate"),
        *_peers("aggregate", "verl", "openrlhf"),
        _plain("textbook formula", plain.token_mean),
    ),
    "sequence_ratio": (
        _ours("sequence_ratio"),
        _plain("textbook formula", plain.sequence_ratio),
    ),
    "importance_weights": (
        _ours("importance_weights"),
        *_peers("importance_weights", "verl", remarks={"verl": "(with metrics)"}),
        _plain("textbook formula", plain.importance_weights),
    ),
    "gae_with_bootstrap": (
        _ours("gae"),
        _plain("numpy float64 loop", plain.numpy_gae, "numpy"),
    ),
    "rloo_advantages": (
        _ours("rloo_advantages"),
        *_peers("rloo_advantages", "verl", "openrlhf"),
        _plain("textbook formula", plain.rloo_advantages),
    ),
    "dpo_loss": (
        _ours("dpo_loss"),
        *_peers("dpo_loss", "openrlhf", "torchtune", "liger"),
        _plain("textbook formula", plain.dpo_loss),
    ),
    "jsd": (
        _ours("jsd"),
        *_peers("jsd", "liger"),
        _plain("textbook formula", plain.jsd),
    ),
    "linear_token_logprobs": (
        _ours("linear_token_logprobs"),
        *_peers("linear_token_logprobs", "trl", "verl", "liger"),
        _plain("fp32 logits, log_softmax + gather", plain.linear_token_logprobs),
    ),
}
