"""verl: the spread of importance weights near 1, as E[w^2] - E[w]^2 in FP32, is noise."""

import importlib.util
import sys
from unittest.mock import MagicMock

import mpmath
import torch

if importlib.util.find_spec("ray") is None:  # imported by verl, not used here
    sys.modules["ray"] = MagicMock()
from verl.trainer.ppo.rollout_corr_helper import compute_is_metrics

noise = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
weights = torch.exp(1e-4 * noise)  # trainer and rollout engine agree to 1e-4 nats
metrics = compute_is_metrics(
    weights, weights, weights.log(), torch.ones(64, 128, dtype=torch.long), "token", 2.0
)
w = [mpmath.mpf(x) for x in weights.flatten().tolist()]
mean = mpmath.fsum(w) / len(w)
print(f"got  rollout_is_std {metrics['rollout_is_std']:.3g}")
std = mpmath.sqrt(mpmath.fsum((x - mean) ** 2 for x in w) / len(w))
print(f"want rollout_is_std {float(std):.3g}")
