"""Inputs of dapo_loss, gspo_loss and cispo_loss.

The hazard. Two clip ranges, a second clip for harmful tokens and a ratio per sequence are easily
exchanged where they are equal, where no token is clipped, or where a sequence has one token. A
ratio that overflows behind a clip makes a NaN gradient under a finite loss.

d is the log-ratio; n real tokens.
"""

from typing import Any

import numpy as np
import torch

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.kl import between
from precision_lib.conformance.strategies.objectives.masks import Kind, Mask, drawn_mask
from precision_lib.conformance.strategies.objectives.ratios import (
    LogRatios,
    cancelling,
    far,
    near,
)
from precision_lib.conformance.strategies.primitives import Build, Draws, Vector, region

#: (low, high): DAPO's, equal ones, GSPO's, MiniMax-M1's without a lower clip.
CLIPS = ((0.2, 0.28), (0.1, 0.1), (0.2, 5.0), (1.0, 4.0))
SEQUENCE_CLIPS = ((0.1, 0.2), (3e-4, 4e-4), (0.2, 0.2), (1.0, 4.0))
DUAL_CLIPS = (None, 3.0, 10.0, 1.5)


def _far_positive(draws: Draws, mask: Mask) -> Vector:
    """d from 0 to 700, one of them 100 or more."""
    return np.abs(draws.integer("farthest", 100, 700) * draws.bounded("d", int(mask.sum())))


def _far_either_way(draws: Draws, mask: Mask) -> Vector:
    return draws.integer("farthest", 100, 700) * draws.bounded("d", int(mask.sum()))


def _at_clip(draws: Draws, mask: Mask, clips: tuple[float, float]) -> tuple[Vector, Vector]:
    """Log-probs 0 and log of 1 - low or 1 + high, give or take three units in the last place."""
    n, (low, high) = int(mask.sum()), clips
    upper = 1 - draws.indices("upper_edge", n, 2)
    edges = np.log([max(1 - low, 0.5), 1 + high])
    edge = draws.rounded(-np.abs(edges[upper]))
    lower = edge - draws.ulps(edge) * np.rint(draws.units("ulps", n)).clip(-3, 3)
    zero = np.zeros(n)
    return np.where(upper == 1, zero, lower), np.where(upper == 1, lower, zero)


def _build(
    log_ratios: LogRatios | None,
    kind: Kind,
    clips: tuple[tuple[float, float], ...],
    *,
    sign: float = 0.0,
    dual: tuple[float | None, ...] = (),
    of_sequences: bool = False,
    nonfinite: bool = False,
) -> Build:
    """``sign``: of all advantages, 0 for both. None for ``log_ratios``: at the clip."""

    def inputs(draws: Draws) -> Arguments:
        clip = draws.choice("clips", clips)
        mask = drawn_mask(draws, kind)
        pair = (
            between(draws, log_ratios(draws, mask)) if log_ratios else _at_clip(draws, mask, clip)
        )
        count = len(mask) if of_sequences else int(mask.sum())
        scale = 2.0 ** draws.integer("log2_advantages", -3, 3)
        advantages = draws.rounded(draws.planted(scale * draws.units("advantages", count)))
        advantages = sign * np.abs(advantages) if sign else advantages
        over: Mask = np.any(mask, axis=1) if of_sequences else mask
        made: Arguments = {}
        for name, x in zip(("logprobs", "old_logprobs"), pair, strict=True):
            made[name] = draws.scattered(draws.rounded(x), mask, nonfinite=nonfinite)
        scattered = advantages[over] if of_sequences else advantages
        made["advantages"] = draws.scattered(scattered, over, nonfinite=nonfinite)
        made |= {"mask": torch.from_numpy(mask), "clip_low": clip[0], "clip_high": clip[1]}
        return made | ({"dual_clip": draws.choice("dual_clip", dual)} if dual else {})

    return inputs


def _dapo(log_ratios: LogRatios | None, kind: Kind = "holed", **changed: Any) -> Build:
    return _build(log_ratios, kind, CLIPS, **{"dual": DUAL_CLIPS} | changed)


def _gspo(log_ratios: LogRatios, kind: Kind = "holed", **changed: Any) -> Build:
    return _build(log_ratios, kind, SEQUENCE_CLIPS, of_sequences=True, **changed)


def _cispo(log_ratios: LogRatios, kind: Kind = "holed", **changed: Any) -> Build:
    return _build(log_ratios, kind, CLIPS, **changed)


_HOLED = "log-ratios of 0.01 to 1 on sequences of any length with holes"
_HIDDEN = "NaN and infinities in masked slots, sequences without a real token"
_TRAINED = "17 sequences of up to 257 tokens"

DAPO_LOSS = {
    "ordinary": region(_HOLED, _dapo(near)),
    "far_positive": region(
        "log-ratios up to 700 with advantages of 0 and above: the clip must save the gradient",
        _dapo(_far_positive, sign=1.0),
    ),
    "far_harmful": region(
        "log-ratios up to 700 with advantages below 0: the dual clip limits them, nothing else",
        _dapo(_far_positive, sign=-1.0, dual=(3.0, None)),
    ),
    "at_the_clip": region("ratios within 3 units in the last place of either clip", _dapo(None)),
    "masked_nonfinite": region(_HIDDEN, _dapo(near, "empty", nonfinite=True)),
    "as_trained": region(_TRAINED, _dapo(near, "trained"), cost=0.2),
}

GSPO_LOSS = {
    "ordinary": region(_HOLED, _gspo(near)),
    "far_positive": region(
        "mean log-ratios of 60 to 700 either way, advantages of 0 and above: the clip must save "
        "the gradient",
        _gspo(far, sign=1.0),
    ),
    "cancelling": region(
        "log-ratios of 10 to 90 that cancel in the sequence: no token is clipped by itself",
        _gspo(cancelling),
    ),
    "masked_nonfinite": region(_HIDDEN, _gspo(near, "empty", nonfinite=True)),
    "as_trained": region(_TRAINED, _gspo(near, "trained"), cost=0.2),
}

CISPO_LOSS = {
    "ordinary": region(_HOLED, _cispo(near)),
    "far": region(
        "log-ratios up to 700 either way: the weight is clipped, the token learns all the same",
        _cispo(_far_either_way),
    ),
    "masked_nonfinite": region(_HIDDEN, _cispo(near, "empty", nonfinite=True)),
    "as_trained": region(_TRAINED, _cispo(near, "trained"), cost=0.2),
}
