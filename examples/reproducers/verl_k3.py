"""verl: low_var_kl (k3, FP32) of a policy 1e-4 nats from its reference is rounding noise."""

import importlib.util
import sys
from unittest.mock import MagicMock

import mpmath
import torch

if importlib.util.find_spec("ray") is None:  # imported by verl, not used here
    sys.modules["ray"] = MagicMock()
from verl.trainer.ppo.core_algos import kl_penalty

draw = torch.Generator().manual_seed(0)
logprobs = -2 * torch.randn(1, 1000, generator=draw).abs()
ref = logprobs + 1e-4 * torch.randn(1, 1000, generator=draw)
got = kl_penalty(logprobs, ref, "low_var_kl")
d = [mpmath.mpf(b) - mpmath.mpf(a) for a, b in zip(logprobs[0].tolist(), ref[0].tolist())]
want = mpmath.fsum(mpmath.expm1(x) - x for x in d) / len(d)
print(f"got  mean {got.mean().item():.3g}, {(got == 0).float().mean().item():.1%} exactly 0")
print(f"want mean {float(want):.3g}, {sum(x == 0 for x in d) / len(d):.1%} exactly 0")
