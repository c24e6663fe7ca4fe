"""torchtune: one token with a log-ratio of 100 and a positive advantage: a NaN gradient."""

import importlib.util
import sys
from types import ModuleType

import torch

# Two files alone: the package around them needs torchao and torchvision, which the loss does not.
folder = importlib.util.find_spec("torchtune").submodule_search_locations[0]
for name, file in (("rlhf", "rlhf/rewards.py"), ("ppo", "rlhf/loss/ppo.py")):
    spec = importlib.util.spec_from_file_location(name, f"{folder}/{file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if name == "rlhf":
        sys.modules["torchtune"] = ModuleType("torchtune")
        sys.modules["torchtune"].rlhf = module

logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
old, zeros, mask = torch.tensor([[-101.0, -1.0]]), torch.zeros(1, 2), torch.ones(1, 2, dtype=bool)
loss, *_ = module.PPOLoss(0.2, 0.2, 0.0)(old, logprobs, zeros + 1, zeros, zeros, zeros, mask, mask)
loss.backward()
print(f"got  loss {loss.item():.6g}, gradient {logprobs.grad[0].tolist()}")
print("want loss -1.1, gradient [0.0, -0.5]")  # clipped: -1.2, no gradient; ratio 1: -1, -1; mean
