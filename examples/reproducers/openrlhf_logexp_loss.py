"""OpenRLHF: the log(1 + exp(x)) loss of its reward trainer overflows: inf, and a NaN gradient."""

import importlib.util
import sys
from types import ModuleType

import mpmath
import torch

# The files alone: the package around them needs deepspeed, ray and vllm, which this loss does not.
sys.modules.setdefault("deepspeed", ModuleType("deepspeed"))
folder = importlib.util.find_spec("openrlhf").submodule_search_locations[0]
sys.modules["models"] = ModuleType("models")
sys.modules["models"].__path__ = [f"{folder}/models"]
LogExpLoss = importlib.import_module("models.loss").LogExpLoss

chosen, rejected = torch.tensor([-50.0], requires_grad=True), torch.tensor([50.0])
loss = LogExpLoss()(chosen, rejected)
loss.backward()
print(f"got  loss {loss.item():.6g}, gradient {chosen.grad.item():.6g}")
e = mpmath.exp(100)
print(f"want loss {float(mpmath.log1p(e)):.6g}, gradient {float(-e / (1 + e)):.6g}")
