"""verl: the FP32 entropy of confident tokens is rounding noise."""

import importlib.util
import sys
from unittest.mock import MagicMock

import mpmath
import torch

if importlib.util.find_spec("ray") is None:  # imported by verl, not used here
    sys.modules["ray"] = MagicMock()
from verl.utils.torch_functional import entropy_from_logits

draw = torch.Generator().manual_seed(0)
logits = torch.randn(1000, 2, generator=draw) + 20
logits[:, 0] += 12  # the first of two entries has a probability of 0.99999
got = entropy_from_logits(logits)
wrong = negative = 0
for row, entropy in zip(logits.tolist(), got.tolist()):
    q = 1 / (1 + mpmath.exp(mpmath.mpf(row[0]) - mpmath.mpf(row[1])))  # of the second entry
    want = -(1 - q) * mpmath.log1p(-q) - q * mpmath.log(q)
    wrong += abs(entropy / want - 1) > 0.01
print(f"got  {wrong} of 1000 off by more than 1 %, {(got <= 0).sum()} zero or negative")
print("want 0 of 1000 off by more than 1 %, 0 zero or negative")
