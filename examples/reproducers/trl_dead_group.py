"""TRL: a group of equal rewards is not seen as one: frac_reward_zero_std reports 0."""

import torch
from trl.trainer.utils import nanstd

rewards = torch.full((1, 8), 0.95)  # eight samples of one prompt, all with the same reward
std = nanstd(rewards, dim=1)
zero = torch.isclose(std, torch.zeros_like(std))  # GRPOTrainer's is_std_zero, logged as the metric
print(f"got  std {std.item():.3g}, frac_reward_zero_std {zero.float().mean().item():.0f}")
print("want std 0, frac_reward_zero_std 1")
