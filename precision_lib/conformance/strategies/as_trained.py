"""Inputs of the size and shape that a trainer has: ``as_trained``, a region of every function.

The hazard. A core chooses another path for a long row, many rows or many tokens, and that is the
one that every real batch takes. Small cases never enter it. A *scene* is one such input, the same
in every run; the region is all scenes of a function.

A large scene repeats a small one (:class:`Embedded`), so that its truth costs no more. B sequences,
T tokens, V vocabulary, G groups, K samples.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import partial

import hypothesis.strategies as st
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.strategies.cases import Case, Embedded, Region
from precision_lib.conformance.strategies.primitives import Vector
from precision_lib.conformance.strategies.trained_values import (
    Rewards,
    Values,
    critics,
    equal,
    graded,
    harmful,
    noise,
    policies,
    scores,
)
from precision_lib.formats import Format, round_to

#: An odd batch: no block of a kernel divides it.
BATCH = (17, 257)
#: More than 2^15 tokens, and more rows than 2^16.
MANY = (41, 1025)
MANY_ROWS = (7, 10_007)
ONE_LONG = (1, 2_051)
#: Distinct slots of a batch that repeats them; a multiple of five, see ``Embedded``.
DISTINCT = 60
#: One more than a block; a block more than 2^16; Gemma 3, more than 2^18.
VOCABULARIES = (4_099, 65_537, 262_208)
#: Entries of a row that are not -inf, where blocks of the others are.
POSSIBLE = 120
#: Scenes of seconds, which one format is enough for.
IN_ONE_FORMAT = ("more_than_2_22_tokens",)

Scene = Callable[[np.random.Generator, Format], Case]


def as_trained(function: str, scenes: Mapping[str, Scene]) -> Region:
    """The region of a function's scenes; each is drawn once, and no draw varies it."""

    def case(fmt: Format, name: str) -> Case:
        seed = zlib.crc32(f"{function} {name}".encode())
        made = scenes[name](np.random.Generator(np.random.PCG64(seed)), fmt)
        return Case(made.inputs, f"scene={name}", made.embedded)

    def names(fmt: Format) -> list[str]:
        return [name for name in scenes if fmt.name == "bf16" or name not in IN_ONE_FORMAT]

    return Region(
        f"batches as trainers have them: {', '.join(scenes).replace('_', ' ')}",
        lambda fmt: st.sampled_from(names(fmt)).map(partial(case, fmt)),
        every_way=True,
    )


def _tensor(x: Vector, fmt: Format) -> Tensor:
    """``x`` rounded once to the format."""
    return round_to(torch.from_numpy(np.ascontiguousarray(x)), fmt).to(fmt.dtype)


def _ragged(shape: tuple[int, int], random: np.random.Generator) -> NDArray[np.bool_]:
    """Right-padded rows of half the length or more, one full and one of a single token."""
    lengths = random.integers(shape[1] // 2, shape[1] + 1, shape[0])
    lengths[0], lengths[-1] = shape[1], 1 if shape[0] > 1 else shape[1]
    return np.arange(shape[1]) < lengths[:, None]


def _repeated(small: Inputs, shape: tuple[int, int]) -> Case:
    """[1, n] slots repeated until they fill ``shape``."""
    count = next(iter(small.tensors.values())).shape[1]
    embedded = Embedded(small, torch.arange(shape[0] * shape[1]) % count, shape)
    return Case(small.each(embedded.spread), embedded=embedded)


def _logits(
    shape: tuple[int, ...], random: np.random.Generator, fmt: Format, *, with_tokens: bool
) -> Inputs:
    """Rows of spread 3, each with a peak at a random entry; the last row has it at the end.

    Tokens are the peak of every other row. A peak of 30 leaves a long row a tail that no order of
    summation can harm: what is asked here is the path, and ``large_vocabulary`` asks for the sum.
    """
    z = 3 * random.standard_normal(shape).reshape(-1, shape[-1])
    rows, peaks = len(z), random.integers(0, shape[-1], len(z))
    peaks[-1] = shape[-1] - 1
    z[np.arange(rows), peaks] = 8.0 if shape[-1] < 2**15 else 30.0
    tokens = np.where(np.arange(rows) % 2 == 1, peaks, random.integers(0, shape[-1], rows))
    tensors = {"logits": _tensor(z.reshape(shape), fmt)}
    if with_tokens:
        tensors["tokens"] = torch.from_numpy(tokens.reshape(shape[:-1]))
    return Inputs(tensors)


def _rows_of(shape: tuple[int, int], size: int, *, with_tokens: bool) -> Scene:
    return lambda random, fmt: _repeated(
        _logits((1, DISTINCT, size), random, fmt, with_tokens=with_tokens), shape
    )


def _wide(size: int, *, with_tokens: bool) -> Scene:
    rows = 3 if size < 2**15 else 2
    return lambda random, fmt: Case(_logits((1, rows, size), random, fmt, with_tokens=with_tokens))


def _blocked(size: int, first: int, tail: int, *, with_tokens: bool) -> Scene:
    """All entries are -inf but 120 from ``first`` on; the last ``tail`` are padding."""

    def scene(random: np.random.Generator, fmt: Format) -> Case:
        small = _logits((1, 5, POSSIBLE), random, fmt, with_tokens=with_tokens)
        columns = np.sort(random.choice(np.arange(first, size - tail), POSSIBLE, replace=False))
        columns[-1] = size - tail - 1
        places = torch.from_numpy(columns)
        embedded = Embedded(small, torch.arange(5), (1, 5), places, size)
        large = {"logits": embedded.spread(small["logits"], -torch.inf)}
        if with_tokens:
            large["tokens"] = places[small["tokens"]]
        return Case(Inputs(large), embedded=embedded)

    return scene


def _of_logits(*, with_tokens: bool) -> dict[str, Scene]:
    small, middle, large = VOCABULARIES
    return {
        "batch_of_17_by_257": _rows_of(BATCH, 37, with_tokens=with_tokens),
        "70_049_rows": _rows_of(MANY_ROWS, 5, with_tokens=with_tokens),
        "vocabulary_of_4_099": _wide(small, with_tokens=with_tokens),
        "vocabulary_of_65_537": _wide(middle, with_tokens=with_tokens),
        "vocabulary_of_262_208": _wide(large, with_tokens=with_tokens),
        "first_block_of_1_100_excluded": _blocked(small, 1_100, 61, with_tokens=with_tokens),
        "first_262_000_excluded": _blocked(large + 1, 262_000, 0, with_tokens=with_tokens),
        "padded_vocabulary": _blocked(large, 0, 61, with_tokens=with_tokens),
    }


def _kl(shape: tuple[int, int], distance: float, estimator: str) -> Scene:
    def scene(random: np.random.Generator, fmt: Format) -> Case:
        policy = -np.abs(2 * random.standard_normal((1, DISTINCT))) - 0.05
        ref = np.minimum(policy + distance * random.standard_normal((1, DISTINCT)), 0.0)
        tensors = {"policy_logprobs": _tensor(policy, fmt), "ref_logprobs": _tensor(ref, fmt)}
        return _repeated(Inputs(tensors, {"estimator": estimator}), shape)

    return scene


def _within_1e_6(random: np.random.Generator, fmt: Format) -> Case:
    """k3 of log-ratios of 2.6e-7 to 1e-6, where expm1 still tells it from 0; 0 in 16 bits."""
    policy = -random.uniform(0.02, 0.3, (1, DISTINCT))
    distance = random.uniform(2.6e-7, 1e-6, (1, DISTINCT)) * random.choice([-1, 1], (1, DISTINCT))
    tensors = {
        "policy_logprobs": _tensor(policy, fmt),
        "ref_logprobs": _tensor(policy + distance, fmt),
    }
    return _repeated(Inputs(tensors, {"estimator": "k3"}), (5, 60))


def _masked(
    names: tuple[str, ...],
    values: Values,
    shape: tuple[int, int],
    **options: float,
) -> Scene:
    """Tensors of these names over a ragged mask; NaN in the masked slots."""

    def scene(random: np.random.Generator, fmt: Format) -> Case:
        mask = torch.from_numpy(_ragged(shape, random))
        tensors = {
            name: _tensor(x, fmt).masked_fill(~mask, torch.nan)
            for name, x in zip(names, values(random, shape), strict=True)
        }
        return Case(Inputs(tensors | {"mask": mask}, options))

    return scene


def _long_gae(sequences: int, tokens: int, gamma: float, lam: float) -> Scene:
    """Three sequences, repeated; values of size 1 and 100, a small reward on each token."""

    def scene(random: np.random.Generator, fmt: Format) -> Case:
        mask = _ragged((3, tokens), random)
        rewards = 0.01 + 0.1 * random.standard_normal(mask.shape)
        values = np.array([[1.0], [100.0], [1.0]]) * (1 + 0.3 * random.standard_normal(mask.shape))
        tensors = {
            "rewards": _tensor(rewards, fmt).masked_fill(torch.from_numpy(~mask), torch.nan),
            "values": _tensor(values, fmt).masked_fill(torch.from_numpy(~mask), torch.nan),
            "mask": torch.from_numpy(mask),
        }
        small = Inputs(tensors, {"gamma": gamma, "lam": lam})
        rows = torch.arange(sequences) % 3
        embedded = Embedded(small, rows, (sequences, tokens), by_sequence=True)
        return Case(small.each(embedded.spread), embedded=embedded)

    return scene


def _groups(groups: int, samples: int, rewards: Rewards) -> Scene:
    return lambda random, fmt: Case(
        Inputs({"rewards": _tensor(rewards(random, (groups, samples)), fmt)})
    )


_LOSS = ("logprobs", "old_logprobs", "advantages")
_VALUES = ("values", "old_values", "returns")

SCENES: dict[str, dict[str, Scene]] = {
    "token_logprobs": _of_logits(with_tokens=True),
    "entropy": _of_logits(with_tokens=False),
    "kl_penalty": {
        "batch_of_17_by_257": _kl(BATCH, 1e-2, "k3"),
        "near_the_reference": _kl(BATCH, 3e-4, "k3"),
        "within_1e_6_of_the_reference": _within_1e_6,
        "70_049_tokens": _kl(MANY_ROWS, 0.1, "k3"),
        "long_k1": _kl(BATCH, 0.1, "k1"),
        "long_k2": _kl(BATCH, 0.1, "k2"),
        "one_long_sequence": _kl(ONE_LONG, 0.03, "k3"),
    },
    "masked_mean": {
        "batch_of_17_by_257": _masked(("x",), noise(0.3, 1.0), BATCH),
        "more_than_2_15_tokens": _masked(("x",), noise(0.3, 1.0), MANY),
        "more_than_2_22_tokens": _masked(("x",), noise(0.3, 1.0), (520, 8_200)),
    },
    "whiten": {
        "batch_of_17_by_257": _masked(("x",), noise(0.3, 1.0), BATCH),
        "large_mean": _masked(("x",), noise(50.0, 1.0), BATCH),
        "constant": _masked(("x",), noise(0.95, 0.0), BATCH),
        "more_than_2_15_tokens": _masked(("x",), noise(3.0, 1.0), MANY),
        "one_long_sequence": _masked(("x",), noise(20.0, 1.0), ONE_LONG),
        "one_long_constant": _masked(("x",), noise(0.1, 0.0), ONE_LONG),
    },
    "gae": {
        "batch_of_17_by_257": _long_gae(17, 257, 1.0, 0.95),
        "small_lambda": _long_gae(5, 2_048, 0.999, 0.3),
        "lambda_0": _long_gae(5, 1_000, 0.99, 0.0),
        "gamma_0": _long_gae(5, 257, 0.0, 1.0),
        "one_sequence": _long_gae(1, 2_048, 0.99, 0.5),
        "lambda_1": _long_gae(4, 2_048, 1.0, 1.0),
        "8_192_tokens": _long_gae(4, 8_192, 0.9999, 0.97),
    },
    "group_advantages": {
        "16_equal_rewards": _groups(33, 16, equal),
        "1_025_equal_rewards": _groups(5, 1_025, equal),
        "16_scores_with_an_offset": _groups(65, 16, scores(5.0, 0.5)),
        "64_graded_rewards": _groups(33, 64, graded),
        "1_025_scores": _groups(3, 1_025, scores(-2.0, 0.7)),
    },
    "policy_loss": {
        "batch_of_17_by_257": _masked(_LOSS, policies(0.1), BATCH, clip_range=0.2),
        "far_ratios_in_a_long_batch": _masked(_LOSS, policies(0.1, 90.0), BATCH, clip_range=0.2),
        "harmful_ratios": _masked(_LOSS, harmful, (9, 300), clip_range=0.2),
        "more_than_2_15_tokens": _masked(_LOSS, policies(0.05), MANY, clip_range=0.2),
        "one_long_sequence": _masked(_LOSS, policies(0.1), ONE_LONG, clip_range=0.28),
        "widest_clip_range": _masked(_LOSS, policies(0.5), (5, 300), clip_range=0.999),
        "narrowest_clip_range": _masked(_LOSS, policies(0.01), (5, 300), clip_range=1e-6),
    },
    "value_loss": {
        "batch_of_17_by_257": _masked(_VALUES, critics, BATCH, clip_range=0.2),
        "more_than_2_15_tokens": _masked(_VALUES, critics, MANY, clip_range=0.2),
        "one_long_sequence": _masked(_VALUES, critics, ONE_LONG, clip_range=0.3),
        "widest_clip_range": _masked(_VALUES, critics, (5, 300), clip_range=1e6),
        "narrowest_clip_range": _masked(_VALUES, critics, (5, 300), clip_range=1e-6),
    },
}

AS_TRAINED: dict[str, dict[str, Region]] = {
    function: {"as_trained": as_trained(function, scenes)} for function, scenes in SCENES.items()
}
