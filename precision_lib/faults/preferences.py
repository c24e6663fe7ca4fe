"""Wrong preference losses, divergences, leave-one-out and bootstrapped advantages.

One mutation each, the rest in float64. ``catalogue`` says where each was seen.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from precision_lib import arguments
from precision_lib.faults.arguments import Arguments, fault_of
from precision_lib.faults.gae import Gae, Pair
from precision_lib.ppo.advantages import gae, rloo_advantages
from precision_lib.ppo.divergences import jsd
from precision_lib.ppo.preferences import dpo_loss


@dataclass(frozen=True)
class Dpo(arguments.Dpo[Tensor], Arguments[Tensor]):
    """The arguments of :func:`dpo_loss`, all [B]."""

    original = staticmethod(dpo_loss)

    def margins(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """(pc - rc) - (pr - rr)."""
        given = self.policy_chosen, self.ref_chosen, self.policy_rejected, self.ref_rejected
        pc, rc, pr, rr = (x.to(dtype) for x in given)
        return (pc - rc) - (pr - rr)


@fault_of(Dpo)
def log_of_a_sigmoid(x: Dpo) -> Tensor:
    """log(sigmoid(x)) in FP32: inf from x = -104 on."""
    return -(x.beta * x.margins()).float().sigmoid().log().mean()


@fault_of(Dpo)
def dpo_margins_in_input_dtype(x: Dpo) -> Tensor:
    """The differences are taken in the format of the log-probs: steps of 4 at -500 in bf16."""
    return torch.nn.functional.softplus(-x.beta * x.margins(x.policy_chosen.dtype).float()).mean()


@fault_of(Dpo)
def dpo_without_its_reference(x: Dpo) -> Tensor:
    """The reference's log-probs cancel: chosen minus rejected of the policy alone."""
    return x.right(
        ref_chosen=torch.zeros_like(x.ref_chosen), ref_rejected=torch.zeros_like(x.ref_rejected)
    )


@fault_of(Dpo)
def dpo_summed_over_pairs(x: Dpo) -> Tensor:
    """The sum over pairs instead of their mean."""
    return x.right() * len(x.policy_chosen)


@fault_of(Dpo)
def dpo_rejected_detached(x: Dpo) -> Tensor:
    """The rejected response does not learn."""
    return x.right(policy_rejected=x.policy_rejected.detach())


@fault_of(Dpo)
def dpo_mean_of_chunk_means(x: Dpo) -> Tensor:
    """Pairs are worked off in chunks of 48 whose means are averaged."""
    terms = torch.nn.functional.softplus(-x.beta * x.margins())
    return torch.stack([chunk.mean() for chunk in terms.split(48)]).mean().float()


@dataclass(frozen=True)
class Divergence(arguments.Divergence[Tensor], Arguments[Tensor]):
    """The arguments of :func:`jsd`, and its steps in float64."""

    original = staticmethod(jsd)

    def logprobs(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """(log q, log p)."""
        both = self.student_logits.to(dtype), self.teacher_logits.detach().to(dtype)
        student, teacher = (x.log_softmax(-1) for x in both)
        return student, teacher


@fault_of(Divergence)
def jsd_shares_exchanged(x: Divergence) -> Tensor:
    """beta weighs the student instead of the teacher."""
    return x.right(beta=1 - x.beta)


@fault_of(Divergence)
def jsd_mixture_of_halves(x: Divergence) -> Tensor:
    """The mixture is half and half whatever beta is."""
    log_q, log_p = x.logprobs()
    q, p = log_q.exp(), log_p.exp()
    log_m = ((p + q) / 2).clamp(min=1e-300).log()
    of_p = torch.where(p > 0, p * (log_p.clamp(min=-1e4) - log_m), 0)
    of_q = torch.where(q > 0, q * (log_q.clamp(min=-1e4) - log_m), 0)
    return (x.beta * of_p + (1 - x.beta) * of_q).sum(-1).float()


@fault_of(Divergence)
def jsd_zero_times_minus_inf(x: Divergence) -> Tensor:
    """p log p at a zero probability is 0 * -inf."""
    log_q, log_p = x.logprobs()
    q, p = log_q.exp(), log_p.exp()
    log_m = (x.beta * p + (1 - x.beta) * q).log()
    parts = x.beta * p * (log_p - log_m) + (1 - x.beta) * q * (log_q - log_m)
    return parts.sum(-1).float()


@fault_of(Divergence)
def jsd_logprobs_in_input_dtype(x: Divergence) -> Tensor:
    """Both log-softmaxes run in the format of the logits."""
    rounded = [y.log_softmax(-1) for y in (x.student_logits, x.teacher_logits.detach())]
    return x.right(student_logits=rounded[0].float(), teacher_logits=rounded[1].float())


@fault_of(Divergence)
def jsd_in_units_of_log_two(x: Divergence) -> Tensor:
    """Bits instead of nats."""
    return x.right() / math.log(2)


@dataclass(frozen=True)
class Rloo(Arguments[Tensor]):
    """The arguments of :func:`rloo_advantages`."""

    rewards: Tensor
    original = staticmethod(rloo_advantages)


@fault_of(Rloo)
def baseline_of_all_samples(x: Rloo) -> Tensor:
    """The mean of the group includes the sample itself: 1 - 1/K of the advantage."""
    return x.right() * (1 - 1 / x.rewards.shape[1])


@fault_of(Rloo)
def rloo_in_rewards_dtype(x: Rloo) -> Tensor:
    """Sum and difference run in the format of the rewards."""
    r = x.rewards
    return ((r.sum(1, keepdim=True) - r) / (r.shape[1] - 1)).sub(r).neg().float()


@fault_of(Rloo)
def rloo_whitened(x: Rloo) -> Tensor:
    """The advantages are divided by the group's deviation, as in GRPO."""
    return x.right() / x.rewards.double().std(1, keepdim=True).clamp(min=1e-6).float()


@dataclass(frozen=True)
class BootstrappedGae(Gae):
    """The arguments of :func:`gae` with the value behind the last token."""

    bootstrap: Tensor | None = None
    original = staticmethod(gae)


@fault_of(BootstrappedGae)
def bootstrap_ignored(x: BootstrappedGae) -> Pair:
    """A response that was cut off counts as ended."""
    return x.right(bootstrap=None)


@fault_of(BootstrappedGae)
def bootstrap_not_discounted(x: BootstrappedGae) -> Pair:
    """The value behind the last token enters without gamma."""
    if x.bootstrap is None or x.gamma == 0:
        return x.right()
    return x.right(bootstrap=x.bootstrap.double() / x.gamma)


@fault_of(BootstrappedGae)
def bootstrap_behind_the_padding(x: BootstrappedGae) -> Pair:
    """The value enters behind the last slot, so that padded responses lose it."""
    if x.bootstrap is None:
        return x.right()
    return x.right(bootstrap=torch.where(x.mask[:, -1], x.bootstrap, 0))


@fault_of(BootstrappedGae)
def bootstrap_of_the_first_sequence(x: BootstrappedGae) -> Pair:
    """One value for all sequences."""
    return (
        x.right() if x.bootstrap is None else x.right(bootstrap=x.bootstrap[:1].expand(len(x.mask)))
    )
