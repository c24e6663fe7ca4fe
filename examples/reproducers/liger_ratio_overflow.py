"""Liger: one token with a log-ratio of 100 and a positive advantage: a NaN gradient."""

import torch
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

# One sequence of two tokens; both have the log-prob -log 2 by logits that are equal.
hidden = torch.ones(1, 2, 1, requires_grad=True)
weight = torch.zeros(2, 1, requires_grad=True)
tokens, mask = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2)
old = torch.tensor([[-0.69314718 - 100, -0.69314718]])
loss = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False)
value, _ = loss(hidden, weight, tokens, mask, torch.ones(1), old_per_token_logps=old)
value.backward()
print(f"got  loss {value.item():.6g}, gradient of the weight {weight.grad[:, 0].tolist()}")
# clipped: -1.2, no gradient; ratio 1: -1 and half of -(1 - 1/2) and 1/2
print("want loss -1.1, gradient of the weight [-0.25, 0.25]")
