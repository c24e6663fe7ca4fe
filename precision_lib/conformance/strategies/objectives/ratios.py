"""Log-probs of two policies for sequence_ratio and importance_weights.

The hazard. exp(sum) and exp(mean) agree on one token; products of ratios agree with exp of a sum
until one of them overflows. So sequences hold many tokens, log-ratios that cancel, and log-ratios
beyond FP32.

d is the log-ratio; n real tokens.
"""

from collections.abc import Callable

import numpy as np
import torch

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.kl import between
from precision_lib.conformance.strategies.objectives.masks import Kind, Mask, drawn_mask
from precision_lib.conformance.strategies.primitives import Build, Draws, Vector, region

LEVELS = ("token", "sequence", "geometric")
MODES = ("truncate", "mask")
CAPS = (2.0, 5.0, 1.0, 1.3, 10.0)
LogRatios = Callable[[Draws, Mask], Vector]  # -> d of the real tokens [n]


def near(draws: Draws, mask: Mask) -> Vector:
    """d of size 0.01 to 1."""
    return 2.0 ** draws.integer("log2_log_ratio", -7, 0) * draws.units("d", int(mask.sum()))


def far(draws: Draws, mask: Mask) -> Vector:
    """The same far d at every token of a sequence, 60 to 700 either way: its mean is far too."""
    sizes = draws.integer("farthest", 60, 700) * draws.bounded("d", len(mask), 4)
    return np.repeat(sizes, mask.sum(axis=1))


def cancelling(draws: Draws, mask: Mask) -> Vector:
    """d of 10 to 90, then as many of -10 to -90: what is left of their sum is of size 1."""
    d = near(draws, mask)
    size = float(draws.integer("size", 10, 90))
    place = np.cumsum(mask, axis=1)[mask] - 1
    half = np.repeat(mask.sum(axis=1) // 2, mask.sum(axis=1))
    return d + np.where(place < half, size, np.where(place < 2 * half, -size, 0.0))


def _pair(
    log_ratios: LogRatios, kind: Kind, names: tuple[str, str], *, nonfinite: bool = False
) -> Build:
    def inputs(draws: Draws) -> Arguments:
        mask = drawn_mask(draws, kind)
        new, old = between(draws, log_ratios(draws, mask))
        vectors = draws.rounded(np.stack([new, old]))
        made: Arguments = {
            name: draws.scattered(x, mask, nonfinite=nonfinite)
            for name, x in zip(names, vectors, strict=True)
        }
        return made | {"mask": torch.from_numpy(mask)}

    return inputs


def _ratio(log_ratios: LogRatios, kind: Kind = "holed", *, nonfinite: bool = False) -> Build:
    return _pair(log_ratios, kind, ("logprobs", "old_logprobs"), nonfinite=nonfinite)


def _weights(
    log_ratios: LogRatios,
    kind: Kind = "holed",
    levels: tuple[str, ...] = LEVELS,
    *,
    nonfinite: bool = False,
) -> Build:
    names = "train_logprobs", "rollout_logprobs"
    pair = _pair(log_ratios, kind, names, nonfinite=nonfinite)

    def inputs(draws: Draws) -> Arguments:
        level, mode = draws.choice("level", levels), draws.choice("mode", MODES)
        cap = draws.choice("cap", CAPS)
        return pair(draws) | {"level": level, "mode": mode, "cap": cap}

    return inputs


_HOLED = "log-ratios of 0.01 to 1 on sequences of any length with holes"
_FAR = "log-ratios of 60 to 700 either way: inf or 0 in FP32, where exact arithmetic is, too"
_CANCEL = "log-ratios of 10 to 90 that cancel in the sequence: a product of ratios overflows"
_HIDDEN = "NaN and infinities in masked slots, sequences without a real token"
_TRAINED = "17 sequences of up to 257 tokens"

SEQUENCE_RATIO = {
    "ordinary": region(_HOLED, _ratio(near)),
    "far": region(_FAR, _ratio(far)),
    "cancelling": region(_CANCEL, _ratio(cancelling)),
    "masked_nonfinite": region(_HIDDEN, _ratio(near, "empty", nonfinite=True)),
    "as_trained": region(_TRAINED, _ratio(near, "trained"), cost=0.2),
}

IMPORTANCE_WEIGHTS = {
    "ordinary": region(_HOLED, _weights(near)),
    "far": region(_FAR, _weights(far)),
    "cancelling": region(_CANCEL, _weights(cancelling, levels=("sequence", "geometric"))),
    "masked_nonfinite": region(_HIDDEN, _weights(near, "empty", nonfinite=True)),
    "as_trained": region(_TRAINED, _weights(near, "trained"), cost=0.3),
}
