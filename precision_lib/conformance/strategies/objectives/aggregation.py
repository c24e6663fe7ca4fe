"""Losses of tokens for aggregate.

The hazard. Means of means, counted padding and a forgotten denominator agree with the right mean
on one full sequence, and on sequences of one length. So lengths differ here, real tokens lie
anywhere, and the denominator is seldom the number of tokens in the call.
"""

import torch

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.objectives.masks import Kind, drawn_mask
from precision_lib.conformance.strategies.primitives import Build, Draws, region

MODES = ("token_mean", "sequence_mean", "sequence_mean_token_sum", "constant")
DENOMINATORS = (None, 1.0, 3.0, 512.0, 1000.0, 100_003.0)


def _build(kind: Kind, denominators: tuple[float | None, ...], *, nonfinite: bool = False) -> Build:
    def inputs(draws: Draws) -> Arguments:
        mode, denominator = draws.choice("mode", MODES), draws.choice("denominator", denominators)
        mask = drawn_mask(draws, kind)
        scale = 2.0 ** draws.integer("log2_values", -3, 6)
        values = draws.rounded(draws.planted(scale * draws.units("values", int(mask.sum()))))
        if mode == "constant" and denominator is None:
            denominator = 24.0
        return {
            "values": draws.scattered(values, mask, nonfinite=nonfinite),
            "mask": torch.from_numpy(mask),
            "mode": mode,
            "denominator": denominator,
        }

    return inputs


AGGREGATE = {
    "ordinary": region(
        "sequences of any length with holes, every mode, with and without a denominator",
        _build("holed", DENOMINATORS),
    ),
    "own_denominator": region(
        "no denominator is given: tokens, or sequences with a token, are counted",
        _build("empty", (None,)),
    ),
    "masked_nonfinite": region(
        "NaN and infinities in masked slots, between real tokens too",
        _build("empty", DENOMINATORS, nonfinite=True),
    ),
    "as_trained": region(
        "17 sequences of up to 257 tokens: chunks inside the function, counts beyond bf16",
        _build("trained", DENOMINATORS),
        cost=0.2,
    ),
}
