"""verl: GRPO advantages of a group of equal rewards are not 0."""

import importlib.util
import sys
from unittest.mock import MagicMock

import numpy as np
import torch

if importlib.util.find_spec("ray") is None:  # imported by verl, not used here
    sys.modules["ray"] = MagicMock()
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

rewards = torch.full((8, 1), 0.95)  # eight samples of one prompt, all with the same reward
mask, index = torch.ones(8, 1, dtype=torch.long), np.zeros(8, dtype=int)
advantages, _ = compute_grpo_outcome_advantage(rewards, mask, index)
print(f"got  {advantages[0].item():.6g} for each of {len(advantages)}")
print("want 0 for each of 8")
