"""verl: one logit of -inf (a masked vocabulary entry) makes the entropy NaN."""

import importlib.util
import math
import sys
from unittest.mock import MagicMock

import mpmath
import torch

if importlib.util.find_spec("ray") is None:  # imported by verl, not used here
    sys.modules["ray"] = MagicMock()
from verl.utils.torch_functional import entropy_from_logits

logits = torch.tensor([[0.0, 1.0, -math.inf]])
p = 1 / (1 + mpmath.e)  # of two entries, the third has probability 0
print(f"got  {entropy_from_logits(logits).item():.6g}")
print(f"want {float(-p * mpmath.log(p) - (1 - p) * mpmath.log1p(-p)):.6g}")
