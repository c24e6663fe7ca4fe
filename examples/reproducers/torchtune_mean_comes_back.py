"""torchtune: normalised advantages keep their mean, because whiten() adds it again by default."""

import importlib.util

import torch

# The file alone: the package around it needs torchao and torchvision, which this function does not.
folder = importlib.util.find_spec("torchtune").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("rewards", f"{folder}/rlhf/rewards.py")
rewards_module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rewards_module)

rewards = torch.zeros(4, 128)
rewards[:, -1] = torch.tensor([2.0, 2.5, 3.5, 4.0])  # a score on the last token, no critic yet
advantages, _ = rewards_module.estimate_advantages(torch.zeros(4, 128), rewards, 1.0, 0.95)
print(f"got  mean {advantages.mean().item():.3g}, std {advantages.std().item():.3g}")
print("want mean 0, std 1")
