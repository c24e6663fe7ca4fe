"""One easy input of each function of the interface, and a result's distance from the core's."""

from typing import Any

import torch
from torch import Tensor

from precision_lib import ppo
from precision_lib.targets.objectives import OPTIONS, base

_ROWS, _WIDTH, _VOCABULARY = 3, 5, 11


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


_MASK = torch.arange(_WIDTH) < torch.tensor([5, 3, 4])[:, None]
_X, _Y = _draw(_ROWS, _WIDTH, seed=1), _draw(_ROWS, _WIDTH, seed=2)
_POLICY = -_draw(_ROWS, _WIDTH, seed=3).abs()
_REFERENCE = _POLICY + 0.3 * _draw(_ROWS, _WIDTH, seed=4)
_LOGITS = _draw(_ROWS, _WIDTH, _VOCABULARY, seed=5)
_TOKENS = _draw(_ROWS, _WIDTH, _VOCABULARY, seed=6).argmax(-1)
_LOSS = {"mask": _MASK, "clip_range": 0.2}
_HIDDEN, _WEIGHT = _draw(_ROWS, _WIDTH, 4, seed=7), _draw(_VOCABULARY, 4, seed=8)
_PAIRS = {
    "policy_chosen": 5 * _POLICY[0],
    "policy_rejected": 5 * _POLICY[1],
    "ref_chosen": 5 * _REFERENCE[0],
    "ref_rejected": 5 * _REFERENCE[1],
}
#: Without a lower clip, and a dual clip above the other: what every adapter takes.
_CLIPPED = {
    "logprobs": _POLICY,
    "old_logprobs": _REFERENCE,
    "mask": _MASK,
    "clip_low": 1.0,
    "clip_high": 0.28,
}

EASY: dict[str, dict[str, Any]] = {
    "token_logprobs": {"logits": _LOGITS, "tokens": _TOKENS},
    "entropy": {"logits": _LOGITS},
    "kl_penalty": {
        "policy_logprobs": _POLICY,
        "ref_logprobs": _REFERENCE,
        "estimator": "k3",
    },
    "masked_mean": {"x": _X, "mask": _MASK},
    "whiten": {"x": _X, "mask": _MASK},
    "gae": {"rewards": _X, "values": _Y, "mask": _MASK, "gamma": 0.9, "lam": 0.8},
    "group_advantages": {"rewards": _X},
    "policy_loss": {
        "logprobs": _POLICY,
        "old_logprobs": _REFERENCE,
        "advantages": _X,
        **_LOSS,
    },
    "value_loss": {"values": _X, "old_values": _X + 0.3 * _Y, "returns": _Y, **_LOSS},
    "aggregate": {"values": _X, "mask": _MASK, "mode": "sequence_mean", "denominator": 7.0},
    "importance_weights": {
        "train_logprobs": _POLICY,
        "rollout_logprobs": _REFERENCE,
        "mask": _MASK,
        "level": "sequence",
        "mode": "mask",
        "cap": 1.1,
    },
    "gspo_loss": _CLIPPED | {"advantages": _X[:, 0]},
    "cispo_loss": _CLIPPED | {"advantages": _X},
    "dapo_loss": _CLIPPED | {"advantages": _X, "dual_clip": 10.0},
    "linear_token_logprobs": {
        "hidden": _HIDDEN,
        "weight": _WEIGHT,
        "tokens": _TOKENS,
        "temperature": 0.7,
    },
    "rloo_advantages": {"rewards": _X},
    "dpo_loss": _PAIRS | {"beta": 0.3},
    "jsd": {"student_logits": _LOGITS, "teacher_logits": _LOGITS.roll(1, -1), "beta": 0.3},
}
_OPTIONS = {"temperature": 0.7, "bootstrap": _X[:, 0], "denominator": 7.0}
EASY |= {
    name: EASY[function] | {argument: _OPTIONS[argument]}
    for name, (function, argument, _) in OPTIONS.items()
}


def far_from_the_core(function: str, result: Any) -> float:
    """Largest distance from the core's result on the easy input; parts that are None left out."""
    core = getattr(ppo, base(function))(**EASY[function])
    got = result if isinstance(result, tuple) else (result,)
    want = core if isinstance(core, tuple) else (core,)
    pairs = [(g, w) for g, w in zip(got, want, strict=True) if g is not None]
    return max(float((g - w).abs().max()) for g, w in pairs)
