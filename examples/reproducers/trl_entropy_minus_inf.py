"""TRL: one logit of -inf (a masked vocabulary entry) makes the entropy NaN."""

import math

import mpmath
import torch
from trl.trainer.utils import entropy_from_logits

logits = torch.tensor([[0.0, 1.0, -math.inf]])
p = 1 / (1 + mpmath.e)  # of two entries, the third has probability 0
print(f"got  {entropy_from_logits(logits).item():.6g}")
print(f"want {float(-p * mpmath.log(p) - (1 - p) * mpmath.log1p(-p)):.6g}")
