"""verl: importance weights of a sequence outside of two bounds raise ZeroDivisionError."""

import importlib.util
import sys
from unittest.mock import MagicMock

import torch

if importlib.util.find_spec("ray") is None:  # imported by verl, not used here
    sys.modules["ray"] = MagicMock()
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

rollout = torch.full((1, 100), -1.0)
trainer = rollout - 0.01  # a ratio of exp(-1) = 0.37 lies below 0.5: the weight is 0
mask = torch.ones(1, 100, dtype=torch.int64)
try:
    weights, *_ = compute_rollout_correction_and_rejection_mask(
        trainer, rollout, mask, "sequence", "0.5_2.0"
    )
    print("got ", "weights", weights.batch["rollout_is_weights"].unique().tolist())
except ZeroDivisionError as error:
    print("got ", f"ZeroDivisionError: {error}")
print("want weights [0.0]")
