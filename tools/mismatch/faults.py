"""Planted disagreements of every kind, in any size, on simulated dumps.

A fault is a function of (seed, rows, length, sigmas, claims, size) to a dump. Size 0 is no fault.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from precision_lib.mismatch.schema import Array, Claims, Dump
from tools.mismatch.policy import (
    Draw,
    at,
    draw,
    dump_of,
    entropy,
    log_softmax,
    noise_dump,
    rounding,
    truncated,
)

Sigmas = tuple[float, float]
Plant = Callable[[int, int, int, Sigmas, Claims, float], Dump]


@dataclass(frozen=True)
class Fault:
    """A kind of disagreement.

    Attributes:
        name: of the row of the table. verdict: what it must be called.
        unit: what ``sizes`` count. sizes: from invisible to gross. plant: makes the dump.
    """

    name: str
    verdict: str
    unit: str
    sizes: tuple[float, ...]
    plant: Plant


def _trainer(drawn: Draw, sigma: float) -> Array:
    return drawn.logits + rounding(drawn.random, drawn.logits.shape, sigma)


def _scored(
    drawn: Draw, rollout: Array, trainer: Array, claims: Claims, *, entropies: Array | None = None
) -> Dump:
    """The dump of [N, T, V] log-probs of both sides."""
    truth = entropy(log_softmax(drawn.logits)) if entropies is None else entropies
    return dump_of(drawn, at(rollout, drawn.tokens), at(trainer, drawn.tokens), truth, claims)


def _temperature(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """The engine samples and reports at temperature 1 - size; the trainer scores at 1."""
    drawn = draw(seed, n, t, s[0], temperature=1 - size)
    rollout = log_softmax(drawn.engine / (1 - size))
    claims = replace(claims, temperature=1 - size, logprobs="processed")
    return _scored(drawn, rollout, log_softmax(_trainer(drawn, s[1])), claims)


def _divided_once(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """The engine reports raw log-probs; the trainer divides by the temperature 1 - size."""
    drawn = draw(seed, n, t, s[0], temperature=1 - size)
    trainer = log_softmax(_trainer(drawn, s[1]) / (1 - size))
    return _scored(drawn, log_softmax(drawn.engine), trainer, claims, entropies=entropy(trainer))


def _silent_temperature(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """Sampled at temperature 1 - size; both sides report at 1."""
    drawn = draw(seed, n, t, s[0], temperature=1 - size)
    return _scored(drawn, log_softmax(drawn.engine), log_softmax(_trainer(drawn, s[1])), claims)


def _top_p(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """The engine samples with top-p 1 - size and renormalises; the trainer does not."""
    drawn = draw(seed, n, t, s[0], top_p=1 - size)
    rollout = truncated(log_softmax(drawn.engine), 1 - size)
    claims = replace(claims, top_p=1 - size, logprobs="processed")
    return _scored(drawn, rollout, log_softmax(_trainer(drawn, s[1])), claims)


def _silent_top_p(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    drawn = draw(seed, n, t, s[0], top_p=1 - size)
    return _scored(drawn, log_softmax(drawn.engine), log_softmax(_trainer(drawn, s[1])), claims)


def _padded_vocabulary(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """The trainer's normaliser counts ``size`` phantom tokens of logit 0."""
    drawn = draw(seed, n, t, s[0])
    logits = _trainer(drawn, s[1])
    sums = np.log(np.exp(logits).sum(-1, keepdims=True) + size)
    return _scored(drawn, log_softmax(drawn.engine), logits - sums, claims)


def _other_weights(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """The trainer was trained on these sequences: size x advantage on their tokens' logits."""
    drawn = draw(seed, n, t, s[0])
    advantages = drawn.random.standard_normal((n, 1, 1))
    moved = _trainer(drawn, s[1])
    chosen = np.zeros(moved.shape)
    np.put_along_axis(chosen, drawn.tokens[..., None], 1.0, -1)
    moved = moved + size * advantages * chosen
    return _scored(drawn, log_softmax(drawn.engine), log_softmax(moved), claims)


def _stays_behind(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """Eight steps without a synchronisation: the trainer's logits drift by ``size`` a step."""
    drawn = draw(seed, n, t, s[0])
    step = np.arange(n) * 8 // n
    drift = drawn.random.standard_normal(drawn.logits.shape) * (size * step[:, None, None])
    dump = _scored(
        drawn, log_softmax(drawn.engine), log_softmax(_trainer(drawn, s[1]) + drift), claims
    )
    return replace(dump, step=step)


def _context(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """Another prompt: logits are off by ``size`` at first, a tenth of it after 64 tokens."""
    drawn = draw(seed, n, t, s[0])
    fading = size * (0.1 + 0.9 * np.exp(-np.arange(t) / 16))[None, :, None]
    other = _trainer(drawn, s[1]) + fading * drawn.random.standard_normal(drawn.logits.shape)
    return _scored(drawn, log_softmax(drawn.engine), log_softmax(other), claims)


def _function(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """Another norm epsilon, RoPE base, adapter: logits are off by ``size`` everywhere."""
    drawn = draw(seed, n, t, s[0])
    other = _trainer(drawn, s[1]) + rounding(drawn.random, drawn.logits.shape, size)
    return _scored(drawn, log_softmax(drawn.engine), log_softmax(other), claims)


def _routing(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """Two of a hundred tokens take another expert: their logits are off by ``size``."""
    drawn = draw(seed, n, t, s[0])
    hit = drawn.random.random((n, t, 1)) < 0.02
    other = _trainer(drawn, s[1]) + hit * size * drawn.random.standard_normal(drawn.logits.shape)
    return _scored(drawn, log_softmax(drawn.engine), log_softmax(other), claims)


def _shifted(by: int) -> Plant:
    def plant(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
        """``size`` of the sequences hold the log-probs of the token ``by`` places later."""
        clean = noise_dump(seed, n, t, s, claims)
        values = clean.trainer.reshape(n, t).copy()
        rows = np.arange(n) < round(size * n)
        values[rows] = np.roll(values, -by, 1)[rows]
        return replace(clean, trainer=values.ravel())

    return plant


def _permuted(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """``size`` of the sequences are paired with another sequence's values."""
    clean = noise_dump(seed, n, t, s, claims)
    values = clean.trainer.reshape(n, t).copy()
    rows = round(size * n)
    values[:rows] = np.roll(values[:rows], 1, 0)
    return replace(clean, trainer=values.ravel())


def _missing(value: float) -> Plant:
    def plant(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
        """``size`` of the rollout's values are missing."""
        clean = noise_dump(seed, n, t, s, claims)
        hit = np.random.default_rng(seed).random(n * t) < size
        return replace(clean, rollout=np.where(hit, value, clean.rollout))

    return plant


def _first_entry(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """For ``size`` of the tokens the engine's likeliest token is reported, not the sampled one."""
    drawn = draw(seed, n, t, s[0])
    logs = log_softmax(drawn.engine)
    hit = np.random.default_rng(seed).random((n, t)) < size
    rollout = np.where(hit, logs.max(-1), at(logs, drawn.tokens))
    trainer = at(log_softmax(_trainer(drawn, s[1])), drawn.tokens)
    return dump_of(drawn, rollout, trainer, entropy(log_softmax(drawn.logits)), claims)


def _wide_mask(seed: int, n: int, t: int, s: Sigmas, claims: Claims, size: float) -> Dump:
    """In ``size`` of the sequences the first real token is a prompt token on the engine's side."""
    clean = noise_dump(seed, n, t, s, claims)
    values = clean.rollout.reshape(n, t).copy()
    rows = round(size * n)
    values[:rows, 0] = np.random.default_rng(seed).normal(-6, 2, rows).clip(max=-0.1)
    return replace(clean, rollout=values.ravel())


_SHARES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_LOGITS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_PHANTOMS = (0.1, 0.3, 1, 3, 10)
_CUTS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)

FAULTS = (
    Fault("shift by one", "alignment", "share of sequences", _SHARES, _shifted(1)),
    Fault("shift by one, the other way", "alignment", "share of sequences", _SHARES, _shifted(-1)),
    Fault("shift by two", "alignment", "share of sequences", _SHARES, _shifted(2)),
    Fault("sequences permuted", "alignment", "share of sequences", _SHARES, _permuted),
    Fault("missing values as 0.0", "alignment", "share of tokens", _CUTS, _missing(0.0)),
    Fault("missing values as NaN", "alignment", "share of tokens", _CUTS, _missing(np.nan)),
    Fault("first entry of the engine", "alignment", "share of tokens", _SHARES, _first_entry),
    Fault("mask one token too wide", "alignment", "share of sequences", _SHARES, _wide_mask),
    Fault("temperature of one side", "semantics", "1 - T", _CUTS, _temperature),
    Fault("raw against divided by T", "semantics", "1 - T", _CUTS, _divided_once),
    Fault("silent temperature", "semantics", "1 - T", _CUTS, _silent_temperature),
    Fault("top-p of one side", "semantics", "1 - p", _CUTS, _top_p),
    Fault("silent top-p", "semantics", "1 - p", _CUTS, _silent_top_p),
    Fault("padded vocabulary", "semantics", "phantom tokens", _PHANTOMS, _padded_vocabulary),
    Fault("trained on these sequences", "delivery", "nats of a logit", _LOGITS, _other_weights),
    Fault("not synchronised, by step", "delivery", "nats a step", _LOGITS[:7], _stays_behind),
    Fault("another context", "model", "nats at first", _LOGITS, _context),
    Fault("another function", "model", "nats of a logit", _LOGITS, _function),
    Fault("another expert, 2 % of tokens", "model", "nats of a logit", _LOGITS, _routing),
)  # fmt: skip
