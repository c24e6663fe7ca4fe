"""TRL: FP32 log-probs of confident tokens are rounding noise; verl's and OpenRLHF's likewise."""

import mpmath
import torch
from trl.trainer.utils import selective_log_softmax

draw = torch.Generator().manual_seed(0)
logits = torch.randn(1, 1000, 2, generator=draw) + 22
logits[..., 0] += 10  # the first of two entries has a probability of 0.9999
tokens = torch.zeros(1, 1000, dtype=torch.long)
got = selective_log_softmax(logits, tokens)[0]
torchs = torch.log_softmax(logits, -1)[0, :, 0]  # of the same logits, in FP32 as well
wrong = zero = of_torch = 0
for row, logprob, other in zip(logits[0].tolist(), got.tolist(), torchs.tolist()):
    want = -mpmath.log1p(mpmath.exp(mpmath.mpf(row[1]) - mpmath.mpf(row[0])))
    wrong += abs(logprob / want - 1) > 0.01
    zero += logprob == 0
    of_torch += abs(other / want - 1) > 0.01
print(f"got  {wrong} of 1000 off by more than 1 %, {zero} exactly 0")
print("want 0 of 1000 off by more than 1 %, 0 exactly 0")
print(f"torch.log_softmax: {of_torch} off by more than 1 %")
