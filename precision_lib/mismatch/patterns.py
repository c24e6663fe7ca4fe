"""From a fingerprint that rounding does not explain to the kind of bug, most specific first.

A rule takes the dump as read, the sample and fingerprints of the aligned tokens, and the size. It
returns a decision, or None where its pattern is not there.
"""

import math

import numpy as np

from precision_lib.mismatch.fingerprints import slope_share
from precision_lib.mismatch.judgement import (
    DELIVERY,
    FEWEST_TOKENS,
    MODEL,
    PRECISION,
    SEMANTICS,
    Decision,
    Size,
)
from precision_lib.mismatch.noise import formats_that_explain, scale
from precision_lib.mismatch.sample import Fingerprint, Sample
from precision_lib.mismatch.schema import Array, Claims, Dump

#: A line in the log-prob that explains so much of d, and a share of signs so far from one half.
LINE, ONE_SIDE = 0.15, 0.3
#: Share of log-probs that are 16-bit numbers when all were stored so; of FP32 numbers 2^-16 are.
ON_GRID = 0.99
#: Decimals of numbers in a text file, and how many tokens say in advance whether they were rounded.
DECIMALS, FIRST_LOOK = range(1, 8), 256


def _not_probabilities(
    dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size
) -> Decision | None:
    """Log-probs above 0, and sampled tokens of probability 0."""
    for name, values in (("rollout", dump.rollout), ("trainer", dump.trainer)):
        fmt = getattr(dump.claims, f"{name}_dtype") or "bf16"
        # Half a unit of a logit of 32 in the format: what log_softmax in it may be off by.
        allowed = 1e-4 if fmt == "fp32" else 0.15
        above = int((values > allowed).sum())
        if above:
            words = (
                f"{above} of {len(values)} log-probs of the {name} are above 0, up to "
                f"{values.max():.3g}: the normaliser is too small (padded vocabulary, a block that "
                "was not counted), or these are no log-probs"
            )
            return SEMANTICS, "log-probs above 0", (words,), ()
        never = int(np.isneginf(values).sum())
        if never:
            words = (
                f"the {name} gives {never} of {len(values)} sampled tokens the probability 0: it "
                "scores a truncated distribution that the sampler did not draw from"
            )
            return SEMANTICS, "sampled tokens of probability 0", (words,), ()
    return None


def _semantics(
    dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size
) -> Decision | None:
    """A line in the log-prob, or d of one sign: strong patterns of another distribution."""
    line, side = prints["slope"], prints["one_sided"]
    if line.rejects and slope_share(s, line.value) > LINE:
        return _temperature(line, s)
    if side.rejects and abs(side.value) > ONE_SIDE:
        return _renormalised(dump, s, prints)
    return None


def _temperature(line: Fingerprint, s: Sample) -> Decision:
    sharper = "rollout" if line.value < 0 else "trainer"
    words = (
        f"d falls on a line in the log-prob: slope {line.value:+.3f} +- {line.error:.3f} (rounding "
        f"allows {line.margin:.3f}), {slope_share(s, line.value):.0%} of the variance of d: the "
        f"{sharper}'s log-probs are of a lower temperature than the other side's"
    )
    return SEMANTICS, "temperature", (words,), ()


def _renormalised(dump: Dump, s: Sample, prints: dict[str, Fingerprint]) -> Decision:
    mean = float(np.exp(np.minimum(s.d, 50)).mean())
    positive = float(np.mean(s.d > 0))
    low, high = (float(q) for q in np.quantile(s.d, (0.005, 0.995)))
    bound = ""
    if dump.claims.top_p and dump.claims.top_p < 1:
        bound = f", and ln {dump.claims.top_p:g} = {math.log(dump.claims.top_p):.3f} is claimed"
    side = "rollout" if s.d.mean() < 0 else "trainer"
    words = (
        f"d has one sign ({positive:.1%} of tokens above 0) and lies within {low:.3f} and "
        f"{high:.3f}{bound}; the mean ratio is {mean:.3f}: the {side} renormalises over a "
        "truncated vocabulary (top-p, top-k), the other side does not"
    )
    return SEMANTICS, "truncated sampling", (words,), ()


def _context(dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size) -> Decision | None:
    """Large at the start of a response, fading: the tokens in front of it are not the same."""
    sequences = prints.get("sequence_means")
    named = (("early", "first 8 tokens"), ("fading", "first quarter of a response"))
    first = next(((prints[n], w) for n, w in named if n in prints and prints[n].rejects), None)
    if first is None or (sequences is not None and sequences.rejects):
        return None
    words = (
        f"d is {math.exp(first[0].value):.1f} times as large in the {first[1]} as later (rounding "
        f"allows {math.exp(first[0].margin):.1f}): the two sides see another context (template, "
        "system prompt, special token, padding)"
    )
    return MODEL, "context", (words,), ()


def _sequences(
    dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size
) -> Decision | None:
    """d moves whole sequences, or grows with the step: the weights are not the same."""
    grows, means = prints.get("growth"), prints.get("sequence_means")
    if grows is not None and grows.rejects:
        words = f"d is {math.exp(grows.value):.2f} times as large in the later half of the steps"
        meaning = "so the rollout's weights stay behind the trainer's"
        return DELIVERY, "grows with the step", (words, meaning), ()
    if means is not None and means.rejects:
        words = (
            f"d moves whole sequences: correlation {means.value:.3f} within a sequence (rounding "
            f"allows {means.margin:.2f}), as training moves them"
        )
        meaning = "so the rollout's weights are others"
        return DELIVERY, "other weights", (words, meaning), (MODEL,)
    return None


def _weaker(dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size) -> Decision | None:
    """The same patterns where they do not dominate d."""
    line, ratio, side = prints["slope"], prints["ratio_mean"], prints["one_sided"]
    if line.rejects:
        return _temperature(line, s)
    if ratio.rejects:
        words = (
            f"the mean ratio is {1 + ratio.value:.4f} +- {ratio.error:.4f}, and 1 for any trainer "
            "when tokens come from the distribution that is reported: the rollout's numbers are "
            "not those that it sampled by (top-p, top-k, temperature, penalty)"
        )
        return SEMANTICS, "reported numbers are not the sampler's", (words,), ()
    if side.rejects:
        return _renormalised(dump, s, prints)
    return None


def _silent(dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size) -> Decision | None:
    """Both sides agree about a distribution that was not sampled from."""
    claims, test = dump.claims, prints.get("surprisal")
    cut = _cut(claims)
    if claims.logprobs == "raw" and cut and size.sigma <= size.usual:
        words = (
            f"the sampling is claimed to use {cut}, the log-probs to be raw, and the trainer "
            "agrees with them: neither side's numbers are those of the sampler"
        )
        return SEMANTICS, "raw log-probs of changed sampling", (words,), ()
    # Of processed log-probs nobody says which distribution the entropies belong to.
    if cut and claims.logprobs != "raw":
        return None
    uneven = prints.get("pit")
    if test is None or not test.rejects:
        return None if uneven is None or not uneven.rejects else _uneven(uneven)
    sharper = "sharper" if test.value < 0 else "flatter"
    foreign = "" if test.value < 0 else ", or a mask that counts what was not sampled: tool output"
    words = (
        f"surprisal less entropy is {test.value:+.3f} +- {test.error:.3f} nats (rounding allows "
        f"{test.margin:.3f}): the tokens come from a {sharper} distribution than both sides score "
        f"({'a silent temperature, top-p, top-k or penalty' + foreign})"
    )
    return SEMANTICS, "silent change of sampling", (words,), ()


def _uneven(test: Fingerprint) -> Decision:
    words = (
        f"the sampled tokens lie unevenly in the distribution that both sides score: distance "
        f"{test.value:.3f} from the uniform one, where drawing from it allows {test.limit:.3f} (a "
        "silent temperature, top-p, top-k or penalty, or two of them)"
    )
    return SEMANTICS, "silent change of sampling", (words,), ()


def _cut(claims: Claims) -> str:
    named = []
    if claims.temperature not in (None, 1.0):
        named.append(f"temperature {claims.temperature:g}")
    if claims.top_p not in (None, 1.0):
        named.append(f"top-p {claims.top_p:g}")
    if claims.top_k:
        named.append(f"top-k {claims.top_k}")
    return " and ".join(named)


def _stored_in_16_bits(
    dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size
) -> Decision | None:
    """All of d is the rounding of log-probs that were stored in 16 bits."""
    for name, values in (("rollout", s.r), ("trainer", s.r + s.d)):
        for fmt, bits in (("bf16", 8), ("fp16", 11)):
            step = np.exp2(np.floor(np.log2(np.maximum(-values, 1e-30))) - bits + 1)
            on_grid = float(np.mean(np.abs(values / step - np.round(values / step)) < 1e-6))
            if on_grid < ON_GRID or float(np.mean(np.abs(s.d) <= 0.51 * step)) < ON_GRID:
                continue
            words = (
                f"the {name}'s log-probs are {fmt} numbers, and {ON_GRID:.0%} and more of d are at "
                f"most half a step of that format: the log-probs were stored in {fmt}"
            )
            return PRECISION, f"log-probs stored in {fmt}", (words,), ()
    return None


def _stored_in_decimals(
    dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size
) -> Decision | None:
    """All of d is the rounding of log-probs to a few decimals, and what the formats allow."""
    sides = (("rollout", s.r), ("trainer", s.r + s.d))
    decimals = {name: _decimals(values) for name, values in sides}
    half_steps = {name: 0.5 * 10.0**-count for name, count in decimals.items() if count}
    if not half_steps:
        return None
    typical = size.limit.typical if size.limit else 0.0
    if not np.all(np.abs(s.d) <= 1.02 * sum(half_steps.values()) + 4 * typical * scale(s.r)):
        return None
    coarse = max(half_steps, key=lambda name: half_steps[name])
    words = (
        f"the {coarse}'s log-probs have {decimals[coarse]} decimals, and every d is within their "
        f"rounding, {half_steps[coarse]:.0e} nats, and that of the claimed formats: the log-probs "
        "were rounded when they were written; store FP32"
    )
    return PRECISION, f"log-probs stored with {decimals[coarse]} decimals", (words,), ()


def _decimals(values: Array) -> int | None:
    """The number of decimals that all of ``values`` have, None where they are no such numbers.

    Stored in FP32, a decimal number is off by 2^-24 of itself. Where that is no small share of a
    step, any number would do, and nothing is said; numbers below a step say nothing either.
    """
    for chosen in (values[:FIRST_LOOK], values):
        for count in DECIMALS:
            step = 10.0**-count
            far = chosen[np.abs(chosen) > 2 * step]
            allowed = 2.0**-24 * np.abs(far) / step + 1e-9
            on_grid = np.abs(far / step - np.round(far / step)) <= allowed
            if len(far) >= 32 and on_grid.mean() >= ON_GRID and np.median(allowed) < 0.1:
                break
        else:
            return None
    return count


def _size_alone(
    dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size
) -> Decision | None:
    """Too large for the claimed formats, or too uneven, and no pattern that names the cause."""
    if size.sigma > size.largest and len(s.d) >= FEWEST_TOKENS // 4:
        assert size.limit is not None
        words = (
            f"sigma is {size.sigma:.3g} nats, {size.sigma / size.limit.typical:.0f} times "
            f"{size.limit.yardstick}; 1,999 of 2,000 {size.limit.varied} stay below "
            f"{size.largest:.2g}: the two sides do not compute the same function"
        )
        explains = formats_that_explain(size.sigma)
        more = (
            f"{' or '.join(explains)} on one side would make a sigma of this size"
            if explains
            else "no format that is known here makes a sigma of this size"
        )
        return MODEL, "another function", (words, more), (DELIVERY,)
    heavy = prints.get("tail")
    if heavy is not None and heavy.rejects:
        words = (
            f"a few tokens carry the difference: the RMS of d / (1 - p) is "
            f"{math.exp(heavy.value):.1f} times its robust size (rounding allows "
            f"{math.exp(heavy.margin):.1f}), as another expert or another context does"
        )
        return MODEL, "rare large differences", (words,), (DELIVERY,)
    return None


#: From the most specific pattern to the least.
RULES = (
    _not_probabilities,
    _semantics,
    _context,
    _sequences,
    _weaker,
    _silent,
    _stored_in_16_bits,
    _stored_in_decimals,
    _size_alone,
)
