"""OpenRLHF: group_norm advantages of groups of equal rewards are not 0, but the reward clip, 10."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
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

values = torch.tensor([0.35, 0.95, 0.65])  # three prompts, eight samples each, all equal
batch = SimpleNamespace(
    rewards=values.repeat_interleave(8), index=list(range(24)), info={}, kl=torch.zeros(24, 1),
    action_mask=torch.ones(24, 1, dtype=torch.long),
)  # fmt: skip
args = SimpleNamespace(  # clip_range: the default, without it 29.8, 59.6 and -59.6
    rollout=SimpleNamespace(n_samples_per_prompt=8), reward=SimpleNamespace(clip_range=(-10, 10)),
    algo=SimpleNamespace(advantage=SimpleNamespace(estimator="group_norm", gamma=1.0)),
)  # fmt: skip
maker = SimpleNamespace(
    strategy=SimpleNamespace(args=args), advantage_estimator="group_norm",
    kl_ctl=SimpleNamespace(value=0.0),
    get_cumulative_returns=lambda *a: Maker.get_cumulative_returns(None, *a),
)  # fmt: skip
(done,) = Maker.compute_advantages_and_returns(maker, [batch])
print("got ", [f"{x:.3g}" for x in done.advantages.view(3, 8)[:, 0].tolist()], "in each group")
print("want", ["0", "0", "0"], "in each group")
