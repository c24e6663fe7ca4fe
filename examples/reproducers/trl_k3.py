"""TRL: the KL term of GRPO (k3, FP32) of a policy 1e-4 nats from its reference is noise."""

from collections import defaultdict
from types import SimpleNamespace

import mpmath
import torch
from trl import GRPOTrainer

draw = torch.Generator().manual_seed(0)
logprobs = -2 * torch.randn(1, 1000, generator=draw).abs()
ref = logprobs + 1e-4 * torch.randn(1, 1000, generator=draw)
zeros = torch.zeros(1, 1000)
trainer = SimpleNamespace(  # what _compute_loss reads of the trainer
    _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, zeros, None),
    top_entropy_quantile=1.0, aux_loss_enabled=False, off_policy_mask_threshold=None,
    importance_sampling_level="token", beta=1.0, loss_type="bnpo", epsilon_low=0.2,
    epsilon_high=0.2, args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
    use_vllm=False, model=SimpleNamespace(training=False), _entropy_bonus_enabled=False,
    accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
    _metrics={"eval": defaultdict(list)},
)  # fmt: skip
ids = torch.zeros(1, 1000, dtype=torch.long)
inputs = {"prompt_ids": ids[:, :0], "prompt_mask": ids[:, :0], "completion_ids": ids,
          "completion_mask": ids + 1, "advantages": zeros, "ref_per_token_logps": ref}  # fmt: skip
d = [mpmath.mpf(b) - mpmath.mpf(a) for a, b in zip(logprobs[0].tolist(), ref[0].tolist())]
print(f"got  mean {GRPOTrainer._compute_loss(trainer, None, inputs).item():.3g}")
print(f"want mean {float(mpmath.fsum(mpmath.expm1(x) - x for x in d) / len(d)):.3g}")
