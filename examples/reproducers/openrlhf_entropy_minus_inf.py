"""OpenRLHF: one logit of -inf (a masked vocabulary entry) makes the entropy NaN."""

import importlib.util
import math
import sys
from types import ModuleType

import mpmath
import torch

# The file alone: the package around it needs deepspeed, ray and vllm, which this function does not.
sys.modules.setdefault("deepspeed", ModuleType("deepspeed"))
folder = importlib.util.find_spec("openrlhf").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("utils", f"{folder}/models/utils.py")
utils = importlib.util.module_from_spec(spec)
spec.loader.exec_module(utils)

logits = torch.tensor([[0.0, 1.0, -math.inf]])
p = 1 / (1 + mpmath.e)  # of two entries, the third has probability 0
with torch.compiler.set_stance("force_eager"):  # the same lines, without a compiler
    print(f"got  {utils.compute_entropy(logits).item():.6g}")
print(f"want {float(-p * mpmath.log(p) - (1 - p) * mpmath.log1p(-p)):.6g}")
