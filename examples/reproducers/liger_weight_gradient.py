"""Liger: the weight's gradient is added up over sequences in the weight's format, here bf16."""

import torch
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

# 512 equal sequences of one token, each a chunk of its own: the gradient is 512 times one, exactly.
n, vocabulary = 512, 4
hidden = torch.ones(n, 1, 1, dtype=torch.bfloat16)
weight = torch.zeros(vocabulary, 1, dtype=torch.bfloat16, requires_grad=True)
tokens, mask = torch.zeros(n, 1, dtype=torch.long), torch.ones(n, 1)
loss = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False)
value, _ = loss(hidden, weight, tokens, mask, torch.ones(n))
value.backward()
print(f"got  loss {value.item():.6g}, gradient {weight.grad[:, 0].tolist()}")
print("want loss -1, gradient [-0.75, 0.25, 0.25, 0.25]")  # -(1 - 1/4) and 1/4, mean of equals
