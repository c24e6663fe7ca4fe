"""Today's objectives in plain torch with autograd, in one format, as a careful trainer has them.

Written from the formulas in docs/targets.md; shares no code with ``precision_lib.ppo``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: A log-ratio that is clamped here has a finite exp in FP32.
_LARGEST = 88.0


class PlainTorch:
    """The functions in ``wide``, float32 or float64."""

    def __init__(self, wide: torch.dtype) -> None:
        self.wide = wide
        self._largest = _LARGEST if wide == torch.float32 else 700.0

    def _real(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, x, torch.zeros_like(x)).to(self.wide)

    def _log_ratio(self, new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
        return (self._real(new, mask) - self._real(old.detach(), mask)).clamp(max=self._largest)

    def aggregate(
        self, values: Tensor, mask: Tensor, mode: str, denominator: float | None
    ) -> Tensor:
        x = self._real(values, mask)
        if mode == "sequence_mean":
            x = x / mask.sum(1, keepdim=True).clamp(min=1)
        count = mask.sum() if mode == "token_mean" else mask.any(1).sum()
        return x.sum() / (count.clamp(min=1) if denominator is None else denominator)

    def sequence_ratio(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
        d = self._real(logprobs, mask) - self._real(old_logprobs.detach(), mask)
        return (d.sum(1) / mask.sum(1).clamp(min=1)).exp()

    def importance_weights(
        self,
        train_logprobs: Tensor,
        rollout_logprobs: Tensor,
        mask: Tensor,
        level: str,
        mode: str,
        cap: float,
    ) -> Tensor:
        with torch.no_grad():
            d = self._real(train_logprobs, mask) - self._real(rollout_logprobs, mask)
            if level != "token":
                d = d.sum(1, keepdim=True).expand(d.shape)
            if level == "geometric":
                d = d / mask.sum(1, keepdim=True).clamp(min=1)
            w = d.exp()
            w = w.clamp(max=cap) if mode == "truncate" else w.masked_fill(w > cap, 0.0)
            return w.masked_fill(~mask, 0.0)

    def gspo_loss(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        clip_low: float,
        clip_high: float,
        denominator: float | None = None,
    ) -> Tensor:
        """The stop-gradient form per token, then the mean of sequence means."""
        real = self._real(logprobs, mask)
        d = self._real(logprobs, mask) - self._real(old_logprobs.detach(), mask)
        mean = d.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        mean = mean.clamp(max=self._largest)
        ratio = (real - real.detach() + mean.detach()).exp()
        a = self._real(advantages.detach(), mask.any(1)).unsqueeze(1)
        losses = torch.max(-a * ratio, -a * ratio.clamp(1 - clip_low, 1 + clip_high))
        return self.aggregate(losses, mask, "sequence_mean", denominator)

    def cispo_loss(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        clip_low: float,
        clip_high: float,
        denominator: float | None = None,
    ) -> Tensor:
        ratio = self._log_ratio(logprobs, old_logprobs, mask).exp()
        weight = ratio.clamp(1 - clip_low, 1 + clip_high).detach()
        losses = -weight * self._real(advantages.detach(), mask) * self._real(logprobs, mask)
        return self.aggregate(losses, mask, "token_mean", denominator)

    def dapo_loss(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        clip_low: float,
        clip_high: float,
        dual_clip: float | None,
        denominator: float | None = None,
    ) -> Tensor:
        ratio = self._log_ratio(logprobs, old_logprobs, mask).exp()
        a = self._real(advantages.detach(), mask)
        losses = torch.max(-a * ratio, -a * ratio.clamp(1 - clip_low, 1 + clip_high))
        if dual_clip is not None:
            losses = torch.where(a < 0, torch.min(losses, -a * dual_clip), losses)
        return self.aggregate(losses, mask, "token_mean", denominator)

    def policy_loss(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        clip_range: float,
        denominator: float | None = None,
    ) -> Tensor:
        given = logprobs, old_logprobs, advantages, mask, clip_range, clip_range, None
        return self.dapo_loss(*given, denominator=denominator)

    def value_loss(
        self,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        mask: Tensor,
        clip_range: float,
        denominator: float | None = None,
    ) -> Tensor:
        v, old, target = (self._real(x, mask) for x in (values, old_values, returns))
        clipped = old + (v - old).clamp(-clip_range, clip_range)
        losses = 0.5 * torch.max((v - target).square(), (clipped - target).square())
        return self.aggregate(losses, mask, "token_mean", denominator)

    def linear_token_logprobs(
        self, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            logits = hidden.to(self.wide) @ weight.to(self.wide).T
        return self.token_logprobs(logits, tokens, temperature)

    def token_logprobs(self, logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
        z = logits.to(self.wide) / temperature
        return z.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def gae(
        self,
        rewards: Tensor,
        values: Tensor,
        mask: Tensor,
        gamma: float,
        lam: float,
        bootstrap: Tensor,
    ) -> tuple[Tensor, Tensor]:
        r, v = self._real(rewards, mask), self._real(values, mask)
        following, running = bootstrap.to(self.wide), torch.zeros(len(r), dtype=self.wide)
        advantages = torch.zeros_like(r)
        for t in reversed(range(r.shape[1])):
            delta = r[:, t] + gamma * following - v[:, t]
            running = torch.where(mask[:, t], delta + gamma * lam * running, running)
            following = torch.where(mask[:, t], v[:, t], following)
            advantages[:, t] = torch.where(mask[:, t], running, 0)
        return advantages, torch.where(mask, advantages + v, 0)

    def rloo_advantages(self, rewards: Tensor) -> Tensor:
        r = rewards.to(self.wide)
        return r - (r.sum(1, keepdim=True) - r) / (r.shape[1] - 1)

    def dpo_loss(
        self,
        policy_chosen: Tensor,
        policy_rejected: Tensor,
        ref_chosen: Tensor,
        ref_rejected: Tensor,
        beta: float,
    ) -> Tensor:
        given = policy_chosen, policy_rejected, ref_chosen, ref_rejected
        pc, pr, rc, rr = (x.to(self.wide) for x in given)
        return -F.logsigmoid(beta * ((pc - pr) - (rc - rr))).mean()

    def jsd(self, student_logits: Tensor, teacher_logits: Tensor, beta: float) -> Tensor:
        """As TRL's generalised JSD."""
        q, p = (x.to(self.wide).clamp(min=-1e4) for x in (student_logits, teacher_logits))
        log_q, log_p = q.log_softmax(-1), p.log_softmax(-1)
        mixed = [math.log(1 - beta) + log_q, math.log(beta) + log_p]
        log_m = torch.logsumexp(torch.stack(mixed), 0)
        of_p = F.kl_div(log_m, log_p, reduction="none", log_target=True)
        of_q = F.kl_div(log_m, log_q, reduction="none", log_target=True)
        return (beta * of_p + (1 - beta) * of_q).sum(-1)
