"""Who is measured: this suite's core, the peers' own functions, and plain torch or numpy.

Each entry binds a case's inputs, given as attributes, to a call without arguments, so that what a
peer wants in another shape or type (an int64 mask, packed logits) is made outside the timed step.

In place: OpenRLHF's ``log_probs_from_logits`` divides the logits in place unless the temperature
is 1; it is called with 1, so the logits stay as they are for the next contender.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch

from tests.benchmarks import peers, plain
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
        if self.source in peers.PEERS:
            return "peer"
        return "ours" if self.source == OURS else "plain"

    @property
    def version(self) -> str:
        """The installed version, without a local suffix such as ``+cpu``."""
        return version(self.source).split("+")[0]


OURS = "rlhf-precision-forensics"


def _ours(function: str) -> Contender:
    def bind(x: Any) -> Call:
        from precision_lib import ppo

        return partial(getattr(ppo, function), **vars(x))

    return Contender("this suite", OURS, bind)


def _plain(label: str, bind: Bind, source: str = "torch") -> Contender:
    return Contender(f"plain: {label}", source, bind)


def _peer(name: str, bind: Bind, remark: str = "") -> Contender:
    return Contender(f"{name} {remark}".strip(), name, bind)


def _integer_mask(x: Any) -> Any:
    return x.mask.to(torch.int64)


def _trl_logprobs(x: Any) -> Call:
    return partial(peers.load("trl")["selective_log_softmax"], x.logits, x.tokens)


def _verl_logprobs(x: Any) -> Call:
    return partial(peers.load("verl")["logprobs_from_logits"], x.logits, x.tokens)


def _verl_logprobs_packed(x: Any) -> Call:
    function = peers.load("verl")["logprobs_from_logits"]
    flat, shape = x.tokens.flatten(), x.tokens.shape
    return lambda: function(x.logits.flatten(0, 1), flat).view(shape)


def _openrlhf_logprobs(x: Any) -> Call:
    return partial(peers.load("openrlhf")["log_probs_from_logits"], x.logits, x.tokens)


def _torchtune_logprobs(x: Any) -> Call:
    return partial(peers.load("torchtune")["logits_to_logprobs"], x.logits, x.tokens)


def _trl_entropy(x: Any) -> Call:
    return partial(peers.load("trl")["entropy_from_logits"], x.logits)


def _verl_entropy(x: Any) -> Call:
    return partial(peers.load("verl")["entropy_from_logits"], x.logits)


def _verl_entropy_chunked(x: Any) -> Call:
    function = peers.load("verl")["entropy_from_logits_with_chunking"]
    return lambda: function(x.logits.flatten(0, 1)).view(x.logits.shape[:-1])


def _openrlhf_entropy(x: Any) -> Call:
    return partial(peers.load("openrlhf")["compute_entropy"], x.logits)


def _verl_kl(x: Any) -> Call:
    return partial(peers.load("verl")["kl_penalty"], *vars(x).values())


def _openrlhf_kl(x: Any) -> Call:
    function = peers.load("openrlhf")["compute_approx_kl"]
    return partial(function, x.policy_logprobs, x.ref_logprobs, kl_estimator=x.estimator)


def _verl_whiten(x: Any) -> Call:
    return partial(peers.load("verl")["masked_whiten"], x.x, _integer_mask(x))


def _torchtune_whiten(x: Any) -> Call:
    # shift_mean=False is the setting that removes the mean; True adds it back.
    return partial(peers.load("torchtune")["whiten"], x.x, x.mask, shift_mean=False)


def _verl_gae(x: Any) -> Call:
    function, mask = peers.load("verl")["compute_gae_advantage_return"], _integer_mask(x)
    return lambda: (None, function(x.rewards, x.values, mask, x.gamma, x.lam)[1])


def _torchtune_gae(x: Any) -> Call:
    function = peers.load("torchtune")["estimate_advantages"]
    return lambda: (None, function(x.values, x.rewards, x.gamma, x.lam, x.mask)[1])


def _openrlhf_gae(x: Any) -> Call:
    function = peers.load("openrlhf")["RemoteExperienceMaker"].get_advantages_and_returns
    return partial(function, None, x.values, x.rewards, _integer_mask(x), x.gamma, x.lam)


def _verl_policy_loss(x: Any) -> Call:
    function, mask = peers.load("verl")["compute_policy_loss_vanilla"], _integer_mask(x)
    config = SimpleNamespace(
        clip_ratio=x.clip_range,
        clip_ratio_low=None,
        clip_ratio_high=None,
        global_batch_info={},
        get=lambda name, default: default,
    )
    return lambda: function(x.old_logprobs, x.logprobs, x.advantages, mask, config=config)[0]


def _openrlhf_policy_loss(x: Any) -> Call:
    module, mask = (
        peers.load("openrlhf")["PolicyLoss"](x.clip_range, x.clip_range),
        _integer_mask(x),
    )
    return lambda: module(x.logprobs, x.old_logprobs, x.advantages, mask)[0]


def _torchtune_policy_loss(x: Any) -> Call:
    module = peers.load("torchtune")["PPOLoss"](x.clip_range, x.clip_range, 0.0)
    none = torch.zeros(1, device=x.mask.device)  # its value loss, made as small as it goes
    rest = (x.advantages, none, none, none, x.mask, None)
    return lambda: module(x.old_logprobs, x.logprobs, *rest)[0]


def _verl_value_loss(x: Any) -> Call:
    function, mask = peers.load("verl")["compute_value_loss"], _integer_mask(x)
    return lambda: function(x.values, x.returns, x.old_values, mask, x.clip_range)[0]


def _openrlhf_value_loss(x: Any) -> Call:
    module = peers.load("openrlhf")["ValueLoss"](x.clip_range)
    return partial(module, x.values, x.old_values, x.returns, _integer_mask(x))


def _torchtune_value_loss(x: Any) -> Call:
    module = peers.load("torchtune")["PPOLoss"](x.clip_range, x.clip_range, 1.0)
    none = torch.zeros(1, device=x.mask.device)  # its policy loss
    values = (x.old_values, x.values, x.returns, None, x.mask)
    return lambda: module(none, none, none, *values)[2]


CONTENDERS = {
    "token_logprobs": (
        _ours("token_logprobs"),
        _peer("trl", _trl_logprobs),
        _peer("verl", _verl_logprobs),
        _peer("verl", _verl_logprobs_packed, "(packed [N, V])"),
        _peer("openrlhf", _openrlhf_logprobs),
        _peer("torchtune", _torchtune_logprobs),
        _plain("fp32 log_softmax + gather", plain.log_softmax_gather),
        _plain("cross_entropy", plain.cross_entropy),
    ),
    "entropy": (
        _ours("entropy"),
        _peer("trl", _trl_entropy),
        _peer("verl", _verl_entropy),
        _peer("verl", _verl_entropy_chunked, "(with chunking)"),
        _peer("openrlhf", _openrlhf_entropy, "(torch.compile)"),
        _plain("fp32 log_softmax, -sum p log p", plain.entropy),
    ),
    "kl_penalty": (
        _ours("kl_penalty"),
        _peer("verl", _verl_kl),
        _peer("openrlhf", _openrlhf_kl),
        _plain("textbook formula", plain.kl_penalty),
    ),
    "whiten": (
        _ours("whiten"),
        _peer("verl", _verl_whiten),
        _peer("torchtune", _torchtune_whiten),
        _plain("textbook formula", plain.whiten),
    ),
    "gae": (
        _ours("gae"),
        _peer("verl", _verl_gae, "(whitens as well)"),
        _peer("openrlhf", _openrlhf_gae),
        _peer("torchtune", _torchtune_gae, "(whitens as well)"),
        _plain("numpy float64 loop", plain.numpy_gae, "numpy"),
    ),
    "policy_loss": (
        _ours("policy_loss"),
        _peer("verl", _verl_policy_loss),
        _peer("openrlhf", _openrlhf_policy_loss),
        _peer("torchtune", _torchtune_policy_loss),
        _plain("textbook formula", plain.policy_loss),
    ),
    "value_loss": (
        _ours("value_loss"),
        _peer("verl", _verl_value_loss),
        _peer("openrlhf", _openrlhf_value_loss),
        _peer("torchtune", _torchtune_value_loss),
        _plain("textbook formula", plain.value_loss),
    ),
}
