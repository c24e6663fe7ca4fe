"""Liger: the k3 estimate (FP32) of a policy 1e-4 nats from its reference is 0 or noise."""

import mpmath
import torch
from liger_kernel.chunked_loss.grpo_loss import k3_loss_fn

draw = torch.Generator().manual_seed(0)
logprobs = -2 * torch.randn(1000, generator=draw).abs()
ref = logprobs + 1e-4 * torch.randn(1000, generator=draw)
got = k3_loss_fn(ref, logprobs)
d = [mpmath.mpf(b) - mpmath.mpf(a) for a, b in zip(logprobs.tolist(), ref.tolist())]
want = mpmath.fsum(mpmath.expm1(x) - x for x in d) / len(d)
print(f"got  mean {got.mean().item():.3g}, {(got == 0).float().mean().item():.1%} exactly 0")
print(f"want mean {float(want):.3g}, 0.0% exactly 0")
