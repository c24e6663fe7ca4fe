"""A statistical model of a policy and of the two sides that score it: dumps without a model.

Every token has a context, a distribution over V tokens. Each side adds its own rounding errors to
the logits, samples or scores, and reports. So every second-order effect of rounding is there:
ratios, entropies, signs. N sequences of T tokens, V vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np

from precision_lib.mismatch.schema import Array, Claims, Dump

VOCABULARY = 48


@dataclass(frozen=True)
class Draw:
    """One sampled batch before the trainer scores it.

    Attributes:
        logits: [N, T, V] of the exact model. engine: [N, T, V], the engine's.
        tokens: [N, T] int64. random: the generator, for what comes next.
    """

    logits: Array
    engine: Array
    tokens: Array
    random: np.random.Generator


def contexts(random: np.random.Generator, rows: int, length: int) -> Array:
    """[N, T, V] logits: three of ten tokens are certain (p > 0.9), entropies reach 3 nats."""
    sharpness = np.exp(random.normal(1.1, 0.7, (rows, length, 1)))
    return sharpness * random.standard_normal((rows, length, VOCABULARY))


def rounding(random: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Array:
    """Errors of logits, whose size differs between tokens: kurtosis about 6, as engines have."""
    size = sigma * np.exp(random.normal(-0.18, 0.6, (*shape[:-1], 1)))
    return size * random.standard_normal(shape)


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs


def truncated(logs: Array, top_p: float) -> Array:
    """Renormalised log-probs of the likeliest tokens that hold ``top_p``; -inf for the others."""
    order = np.argsort(-logs, -1)
    ordered = np.take_along_axis(np.exp(logs), order, -1)
    inside = np.cumsum(ordered, -1) - ordered < top_p
    keep = np.zeros(logs.shape, bool)
    np.put_along_axis(keep, order, inside, -1)
    with np.errstate(divide="ignore"):
        return log_softmax(np.where(keep, logs, -1e9))


def sample(random: np.random.Generator, logs: Array) -> Array:
    """[N, T] tokens drawn by the Gumbel trick."""
    chosen: Array = np.argmax(logs + random.gumbel(size=logs.shape), -1)
    return chosen


def at(values: Array, tokens: Array) -> Array:
    """[N, T] values of the sampled tokens."""
    picked: Array = np.take_along_axis(values, tokens[..., None], -1)[..., 0]
    return picked


def entropy(logs: Array) -> Array:
    p = np.exp(logs)
    nats: Array = -np.where(p > 0, p * np.maximum(logs, -700), 0).sum(-1)
    return nats


def draw(
    seed: int, rows: int, length: int, sigma: float, *, temperature: float = 1.0, top_p: float = 1.0
) -> Draw:
    """Sample a batch from an engine whose logits are off by ``sigma``."""
    random = np.random.default_rng(seed)
    logits = contexts(random, rows, length)
    engine = logits + rounding(random, logits.shape, sigma)
    logs = log_softmax(engine / temperature)
    tokens = sample(random, truncated(logs, top_p) if top_p < 1 else logs)
    return Draw(logits, engine, tokens, random)


def dump_of(drawn: Draw, rollout: Array, trainer: Array, entropies: Array, claims: Claims) -> Dump:
    """The dump of [N, T] arrays, as FP32 stores them."""
    rows, length = rollout.shape
    number, slot = np.divmod(np.arange(rows * length), length)

    def flat(x: Array) -> Array:
        return x.ravel().astype(np.float32).astype(np.float64)

    return Dump(
        "simulated", flat(rollout), flat(trainer), number, slot, drawn.tokens.ravel(),
        flat(entropies), claims=claims,
    )  # fmt: skip


def noise_dump(
    seed: int, rows: int, length: int, sigmas: tuple[float, float], claims: Claims,
    *, equal_share: float = 0.0,
) -> Dump:  # fmt: skip
    """Pure rounding: the two sides' logits are off by ``sigmas``.

    Args:
        equal_share: share of sequences whose tail alone differs, as when a batch shrinks to one
            and another kernel takes over; the rest is equal to the bit.
    """
    drawn = draw(seed, rows, length, sigmas[0])
    trainer = drawn.logits + rounding(drawn.random, drawn.logits.shape, sigmas[1])
    engine = log_softmax(drawn.engine)
    rollout, scored = at(engine, drawn.tokens), at(log_softmax(trainer), drawn.tokens)
    dump = dump_of(drawn, rollout, scored, entropy(log_softmax(drawn.logits)), claims)
    if not equal_share:
        return dump
    starts = np.where(drawn.random.random(rows) < equal_share, length * 3 // 4, 0)
    same = dump.slot < starts[dump.row]
    return replace(dump, trainer=np.where(same, dump.rollout, dump.trainer))
