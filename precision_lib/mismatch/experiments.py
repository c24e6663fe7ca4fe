"""The next experiment: what would separate what this dump cannot."""

from precision_lib.mismatch.judgement import (
    ALIGNMENT,
    CANNOT_SAY,
    DELIVERY,
    EQUAL,
    MODEL,
    PRECISION,
    SEMANTICS,
    Judgement,
)
from precision_lib.mismatch.schema import Claims

_BY_CAUSE = {
    "missing values": "find where the missing values are filled, and mask those tokens instead",
    "shift": "score one response of known tokens on both sides and compare token by token; the "
    "labels are shifted once too often or not at all",
    "pairing": "carry an index with every response through sampling, shuffling and scoring, and "
    "join by it",
    "unrelated": "score one response of known tokens on both sides and compare token by token",
    "first entry": "take the entry of the sampled token id from the engine's dictionary, not the "
    "first one",
    "mask": "print tokens and mask around the first and last real token of one response",
    "temperature": "divide the trainer's logits by the sampling temperature, or ask the engine for "
    "processed log-probs where it reports raw ones; then dump again",
    "truncated sampling": "sample with top-p 1 and no top-k, or apply the same truncation in the "
    "trainer; then dump again",
    "silent change of sampling": "print the engine's own sampling settings (temperature, top-p, "
    "top-k, penalties; generation_config.json sets them, too), then dump again",
    "raw log-probs of changed sampling": "ask the engine for processed log-probs, and divide the "
    "trainer's logits by the temperature",
    "context": "compare the prompt token ids of one response on both sides, from the first on",
    "the weights differ": "deliver the named tensors, then dump again: what they hide is not "
    "judged yet (`precision-forensics weights TRAINER ENGINE` has the details)",
    "same weights, another function": "run both sides in fp32 on the same tokens and compare the "
    "configurations (RoPE base, norm epsilon, routing) and the context",
    "rare large differences": "list the tokens of the largest differences; in a mixture of "
    "experts, replay the engine's routing in the trainer",
}
_BY_VERDICT = {
    SEMANTICS: "compare both sides' log-probs over the whole vocabulary for one token",
    DELIVERY: "compare the weights of both sides (--trainer-weights FILE --engine-weights FILE), "
    "or set the learning rate to 0: what remains is not training",
    MODEL: "run both sides in fp32 on the same tokens and compare the configurations (RoPE base, "
    "norm epsilon, routing); compare the weights tensor by tensor",
    EQUAL: "none for the log-probs; check that the trainer's column is not a copy of the rollout's",
}
ENTROPY = (
    "store trainer_entropy too: without it a silent temperature or top-p cannot be seen, since "
    "both sides may agree about a distribution that was not sampled from"
)
FP32 = "run both sides in fp32: rounding falls by a factor of 1,000 or more, weights stay wrong"
TWICE = "score the rollout twice, in another batch: its own noise is the yardstick"


def next_experiments(judgement: Judgement) -> list[str]:
    """Sentences, the most telling experiment first."""
    if judgement.verdict == CANNOT_SAY:
        return _undecided(judgement)
    if judgement.verdict == PRECISION:
        return _after_precision(judgement)
    first = _BY_CAUSE.get(judgement.cause) or _BY_VERDICT.get(judgement.verdict)
    steps = [first] if first else []
    if judgement.verdict in (DELIVERY, MODEL) and not _is_fp32(judgement.dump.claims):
        steps.append(FP32)
    if judgement.verdict == ALIGNMENT:
        steps.append("dump again after the repair: what misalignment hides is not judged yet")
    return steps


def _is_fp32(claims: Claims) -> bool:
    return claims.rollout_dtype == claims.trainer_dtype == "fp32"


def _undecided(judgement: Judgement) -> list[str]:
    steps = []
    claims = judgement.dump.claims
    if judgement.cause == "too few tokens":
        return ["dump at least 32 responses of 64 tokens"]
    if judgement.cause == "other weights, equal log-probs":
        return ["write both manifests at the step of the dump, before and after the update"]
    if claims.rollout_dtype is None or claims.trainer_dtype is None:
        steps.append("state the formats: --claim rollout_dtype=... trainer_dtype=...")
    if not _is_fp32(claims):
        steps.append(FP32)
    if judgement.dump.rollout_again is None:
        steps.append(TWICE)
    if DELIVERY in judgement.also_possible or not judgement.also_possible:
        steps.append("set the learning rate to 0: what grows with the step is a matter of delivery")
        steps.append(
            "compare the weights: --trainer-weights FILE --engine-weights FILE rule delivery out, "
            "or prove it"
        )
    return steps


def _after_precision(judgement: Judgement) -> list[str]:
    steps = []
    if judgement.dump.entropy is None:
        steps.append(ENTROPY)
    if not _is_fp32(judgement.dump.claims):
        steps.append(
            "to exclude faults below the noise (a wrong norm epsilon adds 3 % to bf16's), run "
            "both sides in fp32"
        )
    return steps or ["none: rounding explains the difference"]
