"""torchtune: a batch with one real token has NaN advantages."""

import importlib.util

import torch

# The file alone: the package around it needs torchao and torchvision, which this function does not.
folder = importlib.util.find_spec("torchtune").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("rewards", f"{folder}/rlhf/rewards.py")
rewards_module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rewards_module)

x, mask = torch.tensor([[1.5, 0.0]]), torch.tensor([[True, False]])
print(f"got  {rewards_module.whiten(x, mask, shift_mean=False)[0, 0].item():.6g}")
print("want 0")  # a single value has no deviation
