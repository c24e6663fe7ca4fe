"""OpenRLHF: GSPO, a mean log-ratio of 100 and a positive advantage: a NaN gradient."""

import importlib.util
import sys
from types import ModuleType

import torch

# The files alone: the package around them needs deepspeed, ray and vllm, which this loss does not.
sys.modules.setdefault("deepspeed", ModuleType("deepspeed"))
folder = importlib.util.find_spec("openrlhf").submodule_search_locations[0]
sys.modules["models"] = ModuleType("models")
sys.modules["models"].__path__ = [f"{folder}/models"]
PolicyLoss = importlib.import_module("models.loss").PolicyLoss

logprobs = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]], requires_grad=True)
old, mask = torch.tensor([[-101.0, -101.0], [-1.0, -1.0]]), torch.ones(2, 2, dtype=torch.long)
loss, *_ = PolicyLoss(policy_loss_type="gspo")(logprobs, old, torch.ones(2, 2), mask)
loss.backward()
print(f"got  loss {loss.item():.6g}, gradient {logprobs.grad.tolist()}")
# clipped: -1.2 and no gradient; ratio 1: -1, and half of -1 for each of its tokens; mean of two
print("want loss -1.1, gradient [[0.0, 0.0], [-0.25, -0.25]]")
