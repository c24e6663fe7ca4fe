"""One word for the disagreement, from alignment, fingerprints and size; in this order.

A fingerprint that rounding does not explain is a bug; which one, its pattern says. What is only too
large has no pattern: it is ``model`` where no model of the claimed formats is so noisy, and
``cannot say`` where few are.
"""

import math

import numpy as np

from precision_lib.mismatch.alignment import misalignments, unshifted
from precision_lib.mismatch.fingerprints import fingerprints
from precision_lib.mismatch.judgement import (
    ALIGNMENT,
    CANNOT_SAY,
    DELIVERY,
    EQUAL,
    FEWEST_TOKENS,
    MODEL,
    PRECISION,
    Decision,
    Judgement,
    Size,
)
from precision_lib.mismatch.misalignment import Misalignment
from precision_lib.mismatch.noise import NoiseLimit, formats_that_explain, noise_limit, sigma_of
from precision_lib.mismatch.patterns import RULES
from precision_lib.mismatch.sample import Fingerprint, Sample
from precision_lib.mismatch.schema import Dump, DumpError


def judge(dump: Dump, limit: float | None = None, expected: NoiseLimit | None = None) -> Judgement:
    """The verdict on a dump.

    Args:
        expected: what rounding may make of this model; None for what it makes of any.
        limit: RMS of d, nats, up to which precision noise is accepted; None for any that the
            claimed formats explain.

    Raises:
        DumpError: no token has a value on both sides.
    """
    problems, aligned = misalignments(dump)
    shift = next((p.undo for p in problems if p.undo), 0)
    measured = unshifted(aligned, shift) if shift else aligned
    if len(measured.row) == 0:
        raise DumpError(f"{dump.source}: no token has a log-prob on both sides; nothing to compare")
    sample, prints = fingerprints(measured)
    size = _size(measured, expected or noise_limit(dump.claims))
    verdict, cause, reasons, others = _decide(dump, measured, problems, sample, prints, size)
    rms = float(np.sqrt(np.mean(sample.d**2))) if len(sample.d) else 0.0
    given = limit is not None and rms > limit
    beyond = verdict == PRECISION and (given or size.sigma > size.usual)
    if beyond and limit is not None and given:
        reasons = (f"the RMS of d is {rms:.3g} nats, above the limit given, {limit:.3g}", *reasons)
    return Judgement(
        verdict, cause, reasons, others, prints, size, tuple(problems), measured, beyond
    )


def _size(dump: Dump, expected: NoiseLimit | None) -> Size:
    floors = [
        sigma_of(again - once, dump.rollout)
        for once, again in (
            (dump.rollout, dump.rollout_again),
            (dump.trainer, dump.trainer_again),
        )
        if again is not None
    ]
    # One known half stands for both.
    pair = math.hypot(*floors) * math.sqrt(2 / len(floors)) if floors else 0.0
    sigma = sigma_of(dump.trainer - dump.rollout, dump.rollout)
    return Size(sigma, expected, pair or None)


def _decide(
    dump: Dump,
    measured: Dump,
    problems: list[Misalignment],
    s: Sample,
    prints: dict[str, Fingerprint],
    size: Size,
) -> Decision:
    if problems:
        return ALIGNMENT, problems[0].kind, tuple(p.words for p in problems), ()
    for rule in RULES:
        decision = rule(dump, s, prints, size)
        if decision is not None:
            return decision
    return _noise(dump, s, prints, size)


def _noise(dump: Dump, s: Sample, prints: dict[str, Fingerprint], size: Size) -> Decision:
    """No fingerprint rejects rounding noise."""
    tokens = len(s.d)
    if not s.differs.any():
        return EQUAL, "bitwise", (f"all {tokens} log-probs are equal to the bit",), ()
    if size.floor and size.sigma <= 1.1 * size.floor:
        words = (
            f"sigma is {size.sigma:.3g} nats, no larger than that of two forwards of one side, "
            f"{size.floor:.3g}"
        )
        return EQUAL, "within the noise floor", (words,), ()
    if tokens < FEWEST_TOKENS:
        words = f"{tokens} tokens are too few to tell rounding from anything else"
        return CANNOT_SAY, "too few tokens", (words,), ()
    uneven = prints.get("sequence_spread")
    if size.sigma > size.usual:
        varied = size.limit.varied if size.limit else "models"
        words = (
            f"sigma is {size.sigma:.3g} nats; nine of ten {varied} in the claimed formats stay "
            f"below {size.usual:.2g}: a noisy one and a small fault of the weights look alike here"
        )
        return CANNOT_SAY, "larger than usual", (words,), (PRECISION, DELIVERY, MODEL)
    if size.limit is None and not size.floor:
        return _unclaimed(size)
    if uneven is not None and uneven.rejects and _beyond(size):
        words = "the size of d differs between sequences by more than rounding usually does"
        return CANNOT_SAY, "uneven", (words,), (PRECISION, DELIVERY, MODEL)
    against = (
        f"{size.sigma / size.limit.typical:.1f} times {size.limit.yardstick}"
        if size.limit
        else f"{size.sigma / (size.floor or 1):.1f} times the noise floor"
    )
    words = (
        f"rounding explains all of it: sigma is {size.sigma:.3g} nats, {against}, and no test of "
        f"{len(prints)} finds a pattern"
    )
    return PRECISION, "rounding", (words,), ()


def _beyond(size: Size) -> bool:
    return size.limit is not None and size.sigma > size.limit.typical


def _unclaimed(size: Size) -> Decision:
    explains = formats_that_explain(size.sigma)
    if not explains:
        words = (
            f"sigma is {size.sigma:.3g} nats, which no known format makes, and no format is claimed"
        )
        return CANNOT_SAY, "no format is claimed", (words,), (PRECISION, DELIVERY, MODEL)
    words = (
        f"no test finds a pattern, and sigma, {size.sigma:.3g} nats, is what "
        f"{' or '.join(explains)} on one side makes; no format is claimed"
    )
    return PRECISION, "rounding", (words,), (DELIVERY, MODEL)
