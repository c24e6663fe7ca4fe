"""OpenRLHF: the k3 estimate (FP32) of a policy 1e-4 nats from its reference is noise."""

import importlib.util
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

draw = torch.Generator().manual_seed(0)
logprobs = -2 * torch.randn(1, 1000, generator=draw).abs()
ref = logprobs + 1e-4 * torch.randn(1, 1000, generator=draw)
got = utils.compute_approx_kl(logprobs, ref, kl_estimator="k3")
d = [mpmath.mpf(b) - mpmath.mpf(a) for a, b in zip(logprobs[0].tolist(), ref[0].tolist())]
want = mpmath.fsum(mpmath.expm1(x) - x for x in d) / len(d)
print(f"got  mean {got.mean().item():.3g}, {(got < 0).float().mean().item():.1%} negative")
print(f"want mean {float(want):.3g}, 0.0% negative")
