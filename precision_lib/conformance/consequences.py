"""What a numeric error does to training: four numbers in RL terms.

The hazard. A measure that leaves NaN out reports a lost step as harmless. Here a NaN counts as
flipped, inverted, and as no cosine at all.
"""

import torch
from torch import Tensor


def clip_decisions_flipped(got: Tensor, want: Tensor, advantages: Tensor, clip: float) -> float:
    """Share of tokens whose gradient is cut off by PPO's clip and should not be, or the reverse.

    A token is cut off when its ratio exp(log-ratio) is above 1 + clip and its advantage positive,
    or below 1 - clip and its advantage negative.

    Args:
        got, want: log-ratios, same shape, nats. advantages: same shape; 0 is never cut off.
    """
    _same_shape(got, want, advantages)
    cut = [_cut_off(x.double(), advantages, clip) for x in (got, want)]
    return float(((cut[0] != cut[1]) | got.isnan()).double().mean())


def _cut_off(log_ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    ratio = log_ratio.exp()
    up, down = (ratio > 1 + clip) & (advantages > 0), (ratio < 1 - clip) & (advantages < 0)
    return up | down


def signs_flipped(got: Tensor, want: Tensor) -> float:
    """Share of advantages other than 0 that come out with another sign, as 0 or as NaN."""
    _same_shape(got, want)
    told = want != 0
    if not told.any():
        raise ValueError("no advantage other than 0 to compare")
    return float((got.sign() != want.sign())[told].double().mean())


def rank_inversions(got: Tensor, want: Tensor) -> float:
    """Share of pairs of a group ordered in ``want``, tied or turned in ``got``; both [G, K]."""
    _same_shape(got, want)
    above = want[:, :, None] > want[:, None, :]
    if not above.any():
        raise ValueError("no pair of a group differs")
    in_order = got[:, :, None] > got[:, None, :]
    return float((~in_order)[above].double().mean())


def gradient_cosine(got: Tensor, want: Tensor) -> float:
    """Cosine between two gradients; NaN when one is not finite or 0."""
    _same_shape(got, want)
    a, b = got.double().flatten(), want.double().flatten()
    a, b = (x / x.abs().max().clamp(min=torch.finfo(torch.float64).tiny) for x in (a, b))
    return float(a @ b / (a.norm() * b.norm()))


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(x.shape) for x in tensors}
    if len(shapes) > 1 or not tensors[0].numel():
        raise ValueError(f"nothing to compare in shapes {sorted(shapes)}")
