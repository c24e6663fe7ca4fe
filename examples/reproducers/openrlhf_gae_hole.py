"""OpenRLHF: GAE through a hole in the mask: tool output counts as steps of value 0."""

import importlib.util
import sys
from types import ModuleType
from unittest.mock import MagicMock

import torch

# Its file and what it imports of arithmetic; ray and the models are not used by this method.
folder = importlib.util.find_spec("openrlhf").submodule_search_locations[0]
for name in ("deepspeed", "ray", "openrlhf.trainer.ray", "openrlhf.trainer.ray.launcher"):
    sys.modules[name] = MagicMock()
for name in ("models", "trainer", "trainer/ppo_utils", "utils"):
    module = sys.modules["openrlhf." + name.replace("/", ".")] = ModuleType(name)
    module.__path__ = [f"{folder}/{name}"]
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker as Maker

# Two tokens of the policy; 20 tokens of a tool between them, which the mask leaves out.
mask = torch.tensor([[1] + 20 * [0] + [1]])
values, rewards = 0.5 * mask, torch.tensor([21 * [0.0] + [1.0]])
got, _ = Maker.get_advantages_and_returns(None, values, rewards, mask, 1.0, 0.95)
# delta_0 = 0.5 - 0.5 = 0, delta_1 = 1 - 0.5: the advantages are 0 + 0.95 * 0.5 and 0.5
print(f"got  {got[0, 0].item():.4g}, {got[0, -1].item():.4g}")
print("want 0.475, 0.5")
