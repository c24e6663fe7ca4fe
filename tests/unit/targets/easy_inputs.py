"""One easy input of each function of the interface, and a result's distance from the core's."""

from typing import Any

import torch
from torch import Tensor

from precision_lib import ppo

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
}


def far_from_the_core(function: str, result: Any) -> float:
    """Largest distance from the core's result on the easy input; parts that are None left out."""
    core = getattr(ppo, function)(**EASY[function])
    got = result if isinstance(result, tuple) else (result,)
    want = core if isinstance(core, tuple) else (core,)
    pairs = [(g, w) for g, w in zip(got, want, strict=True) if g is not None]
    return max(float((g - w).abs().max()) for g, w in pairs)
