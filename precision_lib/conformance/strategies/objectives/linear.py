"""Hidden states, a vocabulary matrix and tokens for linear_token_logprobs.

The hazard. A kernel works in blocks. Where V is no multiple of a block, what fills it up must not
count: with logits near -30 each entry of exp(0) outweighs the vocabulary. The gradient of the
weight is a sum over rows that chunks may overwrite. Logits in 16 bits are wrong before the softmax.

H hidden size, V vocabulary, N = B T rows.
"""

from typing import Literal

import numpy as np
import torch

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.primitives import Build, Draws, region

TEMPERATURES = (1.0, 0.7, 0.5, 1.3, 2.0)
SMALL = (2, 3, 5, 17, 50)
#: Powers of two, one more, one less: no block divides them all.
UNEVEN = (3, 65, 127, 129, 257, 1025)
Kind = Literal["ordinary", "below_zero", "confident", "offset", "trained"]


def _build(kind: Kind, vocabularies: tuple[int, ...], largest_rows: tuple[int, int]) -> Build:
    def inputs(draws: Draws) -> Arguments:
        temperature = draws.choice("temperature", TEMPERATURES)
        size = draws.choice("V", vocabularies)
        if kind == "trained":
            sequences, tokens, width = (*largest_rows, 64)
        else:
            sequences = draws.integer("B", 1, largest_rows[0])
            tokens = draws.integer("T", 1, largest_rows[1])
            width = draws.integer("H", 1, 8)
        rows = sequences * tokens
        hidden = draws.units("hidden", rows * width).reshape(rows, width)
        weight = draws.units("weight", size * width).reshape(size, width) / np.sqrt(width)
        if kind == "confident":
            weight *= draws.integer("gain", 4, 24)
        if kind in ("below_zero", "offset"):  # one state is constant, and shifts all logits
            hidden[:, 0] = 4.0
            weight[:, 0] = -float(draws.integer("shift", 8, 16))
            weight[:, 0] *= -8.0 if kind == "offset" else 1.0
        chosen = draws.indices("tokens", rows, size).reshape(sequences, tokens)
        return {
            "hidden": draws.tensor(hidden).view(sequences, tokens, width),
            "weight": draws.tensor(weight),
            "tokens": torch.from_numpy(chosen),
            "temperature": temperature,
        }

    return inputs


LINEAR_TOKEN_LOGPROBS = {
    "ordinary": region("logits of size 1, every temperature", _build("ordinary", SMALL, (2, 3))),
    "far_below_zero": region(
        "all logits between -32 and -64 and a vocabulary that no block divides: an entry that "
        "fills up a block counts more than all others",
        _build("below_zero", UNEVEN, (1, 3)),
    ),
    "confident": region(
        "logits of size 4 to 24: in 16 bits on a grid of up to 1/8",
        _build("confident", SMALL, (2, 3)),
    ),
    "large_offset": region(
        "all logits between 256 and 512: what their softmax sees is the difference",
        _build("offset", SMALL, (2, 3)),
    ),
    "as_trained": region(
        "51 rows of 64 states, 2,050 and 4,099 entries: blocks of both, and the sum over rows",
        _build("trained", (2050, 4099), (3, 17)),
        cost=0.12,
    ),
}
