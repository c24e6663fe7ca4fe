"""TRL: one token with a log-ratio of 100 and a positive advantage: a NaN gradient."""

from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import GRPOTrainer

logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
old, advantages = torch.tensor([[-101.0, -1.0]]), torch.ones(1, 2)
trainer = SimpleNamespace(  # what _compute_loss reads of the trainer
    _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(1, 2), None),
    top_entropy_quantile=1.0, aux_loss_enabled=False, off_policy_mask_threshold=None,
    importance_sampling_level="token", beta=0.0, loss_type="bnpo", epsilon_low=0.2,
    epsilon_high=0.2, args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
    use_vllm=False, model=SimpleNamespace(training=False), _entropy_bonus_enabled=False,
    accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
    _metrics={"eval": defaultdict(list)},
)  # fmt: skip
ids = torch.zeros(1, 2, dtype=torch.long)
inputs = {"prompt_ids": ids[:, :0], "prompt_mask": ids[:, :0], "completion_ids": ids,
          "completion_mask": ids + 1, "advantages": advantages,
          "old_per_token_logps": old}  # fmt: skip
loss = GRPOTrainer._compute_loss(trainer, None, inputs)
loss.backward()
print(f"got  loss {loss.item():.6g}, gradient {logprobs.grad[0].tolist()}")
print("want loss -1.1, gradient [0.0, -0.5]")  # clipped: -1.2, no gradient; ratio 1: -1, -1; mean
