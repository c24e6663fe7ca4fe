"""Liger: the Jensen-Shannon divergence of logits of which one is -inf is NaN."""

import mpmath
import torch
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

student, teacher = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[0.5, 0.0, -torch.inf]])
got = LigerFusedLinearJSDFunction.distillation_loss_fn(student, teacher, 0.5)
p = [mpmath.exp(x) / (1 + mpmath.e) for x in (0, 1)]
q = [mpmath.exp(x) / (1 + mpmath.exp(0.5)) for x in (0.5, 0)]
want = sum(a * mpmath.log(2 * a / (a + b)) + b * mpmath.log(2 * b / (a + b)) for a, b in zip(p, q))
print(f"got  {got.item():.6g}")
print(f"want {float(want / 2):.6g}")
