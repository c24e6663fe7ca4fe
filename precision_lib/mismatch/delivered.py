"""Whether the weights of both sides were the same: evidence for or against ``delivery``.

The hazard. Manifests of another moment are evidence about other weights. So manifests are no
evidence where the dump lacks the step of one of them, and those of one step say nothing of the
others.

Log-probs cannot tell other weights from another computation of the same size. Hashes of both
sides' weights can: equal ones rule ``delivery`` out, different ones prove it.
"""

from dataclasses import dataclass, replace

import numpy as np

from precision_lib.mismatch.judgement import (
    ALIGNMENT,
    CANNOT_SAY,
    DELIVERY,
    EQUAL,
    MODEL,
    SEMANTICS,
    Judgement,
)
from precision_lib.weights.findings import Outcome

#: Tensors of a kind that a sentence names.
NAMED = 3


@dataclass(frozen=True)
class Weights:
    """What comparing both sides' weights said: the outcome, and their training steps if known."""

    outcome: Outcome
    trainer_step: int | None = None
    engine_step: int | None = None


def with_weights(judgement: Judgement, weights: Weights) -> Judgement:
    """The judgement once the weights of both sides were compared."""
    judged = replace(judgement, weights=weights.outcome)
    steps = np.unique(judgement.dump.step) if judgement.dump.step is not None else None
    known = {s for s in (weights.trainer_step, weights.engine_step) if s is not None}
    others = known - set(steps.tolist()) if steps is not None else set()
    if steps is not None and others:
        words = (
            f"weights of step {min(others)} were compared, the dump holds steps {steps[0]} to "
            f"{steps[-1]}: no evidence for or against delivery"
        )
        return _noted(judged, words)
    if weights.outcome.verdict == "different":
        return _proven(judged, weights.outcome)
    if weights.outcome.verdict == "equal":
        return _ruled_out(judged, weights.outcome, several=steps is not None and len(steps) > 1)
    unread = len(weights.outcome.unread)
    return _noted(judged, f"comparing the weights cannot say: {unread} tensors were not compared")


def _noted(judged: Judgement, words: str) -> Judgement:
    return replace(judged, reasons=(*judged.reasons[:2], words))


def _proven(judged: Judgement, outcome: Outcome) -> Judgement:
    """Different weights, and what else the dump shows."""
    words = f"the weights differ, tensor by tensor: {named(outcome)}"
    if judged.verdict == EQUAL and judged.cause == "bitwise":
        more = f"{words}; yet the log-probs are equal to the bit: weights of another moment?"
        cause, reasons = "other weights, equal log-probs", (*judged.reasons, more)
        others = (EQUAL, DELIVERY)
        return replace(
            judged, verdict=CANNOT_SAY, cause=cause, reasons=reasons, also_possible=others
        )
    if judged.verdict == ALIGNMENT and judged.cause != "unrelated":
        reasons = (*judged.reasons[:2], words)
        return replace(judged, reasons=reasons, also_possible=(DELIVERY,))
    also = (judged.verdict,) if judged.verdict in (SEMANTICS, MODEL) else ()
    return replace(
        judged,
        verdict=DELIVERY,
        cause="the weights differ",
        reasons=(words, *judged.reasons),
        also_possible=also,
        beyond_limit=False,
    )


def _ruled_out(judged: Judgement, outcome: Outcome, *, several: bool) -> Judgement:
    """Equal weights: what looked like other weights is another computation."""
    words = f"the weights of both sides are equal, {outcome.compared} tensors"
    if several:
        words += ", at one of the dump's steps; the others were not compared"
        if judged.verdict != DELIVERY:
            return _noted(judged, words)
        return replace(
            judged,
            verdict=CANNOT_SAY,
            cause=f"{judged.cause}, equal weights at one step",
            reasons=(judged.reasons[0], words),
            also_possible=(DELIVERY, MODEL),
        )
    words += ": delivery is ruled out"
    if judged.verdict == DELIVERY:
        cause, reasons = "same weights, another function", (words, judged.reasons[0])
        return replace(judged, verdict=MODEL, cause=cause, reasons=reasons, also_possible=())
    left = tuple(verdict for verdict in judged.also_possible if verdict != DELIVERY)
    return _noted(replace(judged, also_possible=left), words)


def named(outcome: Outcome) -> str:
    """Kinds of findings with their tensors, three of each by name."""
    kinds: dict[str, list[str]] = {}
    for finding in outcome.findings:
        kinds.setdefault(finding.kind, []).append(finding.tensor)
    parts = []
    for kind, tensors in kinds.items():
        more = f" and {len(tensors) - NAMED} more" if len(tensors) > NAMED else ""
        parts.append(f"{kind} {', '.join(tensors[:NAMED])}{more}")
    return "; ".join(parts)
