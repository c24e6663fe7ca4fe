"""One side's dump against a model: the trainer's side is scored here, then judged.

The hazard. A trainer's forward that has noise of its own hides what the engine does. So the
verdict rests on FP32, whose noise is a thousand times smaller than a 16-bit engine's. The claimed
formats are scored beside it: they say how large rounding is on this model, and what the pair costs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from precision_lib.mismatch import delivered
from precision_lib.mismatch.cost import cost
from precision_lib.mismatch.counters import counters
from precision_lib.mismatch.judgement import EQUAL, Judgement
from precision_lib.mismatch.noise import NoiseLimit, noise_limit_of_model, sigma_of
from precision_lib.mismatch.report import Report, Scored, ScoredInBoth, report_of
from precision_lib.mismatch.rollout import Rollout
from precision_lib.mismatch.schema import Array, Claims, Dump, DumpError
from precision_lib.mismatch.verdict import judge
from precision_lib.models.loading import Checkpoint
from precision_lib.scoring.forward import vocabulary_of
from precision_lib.scoring.sampled import Figures, figures_of_tokens
from precision_lib.scoring.scorer import GOLDEN, Scorer, Weights

#: Formats that a model is scored in beside FP32, in the order of preference.
SIXTEEN_BITS = ("bf16", "fp16")
#: Of the places within the sampled token's own probability.
_SEED = 0


@dataclass(frozen=True)
class Checked:
    """A verdict and what it rests on.

    Attributes:
        judgement: of the engine against FP32.
        report: of the judgement, with ``model`` and ``scored``.
    """

    judgement: Judgement
    report: Report


def run_rollout_check(
    checkpoint: Checkpoint,
    rollout: Rollout,
    limit: float | None = None,
    progress: Callable[[str, int, int], object] = lambda fmt, done, total: None,
    compared: delivered.Weights | None = None,
) -> Checked:
    """Score the dump's tokens in FP32 and in the claimed formats, and judge the engine.

    Args:
        limit: as :func:`precision_lib.mismatch.verdict.judge` takes it.
        progress: called with the format, tokens done and tokens in all, after each forward.
        compared: the weights of both sides, where they were compared.

    Raises:
        DumpError: tokens that the model does not have, more of them than it has positions, or
            numbers that are no log-probs.
    """
    check_fits(checkpoint, rollout)
    scores = _scores(checkpoint, rollout, progress)
    golden = scores[GOLDEN]
    exact = rollout.dump({**_columns(golden), "trainer_pit": _places(golden)}, GOLDEN)
    others = {
        fmt: rollout.dump({"trainer_logprobs": _columns(rows)["trainer_logprobs"]}, fmt)
        for fmt, rows in scores.items()
        if fmt != GOLDEN
    }
    judgement = judge(exact, limit, _expected(rollout.claims, exact, others))
    if compared is not None:
        judgement = delivered.with_weights(judgement, compared)
    report = report_of(judgement)
    same = ["none: the engine reports what this model gives"]
    report = replace(
        report,
        model={"name": checkpoint.name, "sha256": checkpoint.sha256},
        scored={GOLDEN: _scored(exact), **_beside(exact, others)},
        next=same if judgement.verdict == EQUAL else report.next,
        notes=[*report.notes, *_beyond_tokenizer(checkpoint, rollout)],
    )
    return Checked(judgement, report)


def check_fits(checkpoint: Checkpoint, rollout: Rollout) -> None:
    """Refuse what the model cannot score, before anything is computed.

    Raises:
        DumpError: a token outside the vocabulary, a sequence beyond the positions, or log-probs of
            which nobody says what the temperature did to them.
    """
    vocabulary = vocabulary_of(checkpoint.model)
    positions = getattr(checkpoint.model.config, "max_position_embeddings", None)
    for number, tokens in rollout.sequences.items():
        if tokens.max() >= vocabulary:
            raise DumpError(
                f"{rollout.source}: row {number} holds the token {tokens.max()}, and "
                f"{checkpoint.name} has {vocabulary} tokens; the dump is of another model"
            )
        if positions is not None and len(tokens) > positions:
            raise DumpError(
                f"{rollout.source}: row {number} has {len(tokens)} tokens, and {checkpoint.name} "
                f"has {positions} positions; give the model that was sampled from"
            )
    if rollout.claims.temperature not in (None, 1.0) and rollout.claims.logprobs is None:
        raise DumpError(
            f"{rollout.source}: the temperature is {rollout.claims.temperature:g}, and nobody says "
            "whether the log-probs are raw or processed; add --claim logprobs=raw (vLLM's default) "
            "or logprobs=processed"
        )


def formats_to_score(claims: Claims) -> tuple[str, ...]:
    """FP32, and the 16-bit formats that the claims name or rest on."""
    asked = {claims.rollout_dtype, claims.trainer_dtype} & set(SIXTEEN_BITS)
    if claims.rollout_dtype in ("fp8", "int8") or claims.kv_cache_dtype in ("fp8", "int8"):
        asked = asked or {"bf16"}  # everything but their products is bf16
    return (GOLDEN, *(fmt for fmt in SIXTEEN_BITS if fmt in asked))


def _scores(
    checkpoint: Checkpoint, rollout: Rollout, progress: Callable[[str, int, int], object]
) -> dict[str, dict[int, Figures]]:
    """Format to row number to figures."""
    numbers = list(rollout.sequences)
    sequences = [torch.from_numpy(rollout.sequences[number]) for number in numbers]
    total = sum(len(tokens) for tokens in sequences)
    # Raw log-probs are those before the temperature; processed ones those behind it.
    processed = rollout.claims.logprobs == "processed"
    temperature = (rollout.claims.temperature or 1.0) if processed else 1.0

    def score(model: Any, weights: Weights, run: str) -> list[Figures]:
        done = 0

        def forward_done(tokens: int) -> None:
            nonlocal done
            done = min(done + tokens, total)
            progress(weights.fmt, done, total)

        progress(weights.fmt, 0, total)
        return figures_of_tokens(model, sequences, temperature, forward_done)

    scorer: Scorer[list[Figures]] = Scorer(checkpoint.model, score)
    return {
        fmt: dict(zip(numbers, scorer.scored(Weights("trainer", fmt)), strict=True))
        for fmt in formats_to_score(rollout.claims)
    }


def _columns(rows: dict[int, Figures]) -> dict[str, dict[int, Array]]:
    return {
        "trainer_logprobs": {number: f.logprobs.double().numpy() for number, f in rows.items()},
        "trainer_entropy": {number: f.entropy.double().numpy() for number, f in rows.items()},
    }


def _places(rows: dict[int, Figures]) -> dict[int, Array]:
    """Where each token lies: above it what is more likely, and a random share of its own."""
    random = np.random.default_rng(_SEED)
    places = {}
    for number, f in rows.items():
        own = np.exp(f.logprobs.double().numpy()) * random.random(len(f.logprobs))
        places[number] = np.minimum(f.above.double().numpy() + own, 1.0)
    return places


def _expected(claims: Claims, exact: Dump, others: dict[str, Dump]) -> NoiseLimit | None:
    """What rounding may make of this model in the claimed format, when a 16-bit one was scored."""
    if not others:
        return None
    fmt = claims.rollout_dtype if claims.rollout_dtype in others else next(iter(others))
    assert fmt is not None
    return noise_limit_of_model(claims, fmt, _sigma(others[fmt].trainer - exact.trainer, exact))


def _sigma(d: Array, dump: Dump) -> float:
    """sigma of differences, where both are numbers."""
    usable = np.isfinite(d) & np.isfinite(dump.rollout)
    return sigma_of(d[usable], dump.rollout[usable])


def _scored(dump: Dump) -> Scored:
    """The engine against one format, at tokens where both are numbers."""
    usable = np.isfinite(dump.rollout) & np.isfinite(dump.trainer)
    aligned = dump.only(usable)
    sigma = sigma_of(aligned.trainer - aligned.rollout, aligned.rollout)
    return Scored(sigma, counters(aligned), cost(aligned))


def _beside(exact: Dump, others: dict[str, Dump]) -> dict[str, Scored]:
    """The engine against the other formats, and the two halves of each difference."""
    result: dict[str, Scored] = {}
    for fmt, dump in others.items():
        usable = np.isfinite(dump.rollout) & np.isfinite(dump.trainer)
        engine = (dump.rollout - exact.trainer)[usable]
        trainer = (dump.trainer - exact.trainer)[usable]
        spreads = float(engine.std() * trainer.std())
        centred = float(np.mean((engine - engine.mean()) * (trainer - trainer.mean())))
        result[fmt] = ScoredInBoth(
            **vars(_scored(dump)),
            trainer_sigma=_sigma(dump.trainer - exact.trainer, exact),
            engine_sigma=_sigma(dump.rollout - exact.trainer, exact),
            correlation=centred / spreads if spreads > 0 else 0.0,
        )
    return result


def _beyond_tokenizer(checkpoint: Checkpoint, rollout: Rollout) -> list[str]:
    """A note where padding rows of the vocabulary were sampled."""
    known = len(checkpoint.tokenizer)
    beyond = sum(int((tokens >= known).sum()) for tokens in rollout.sequences.values())
    if not beyond:
        return []
    return [
        f"{beyond} tokens are beyond the tokenizer's {known}: the engine samples rows that only "
        "pad the vocabulary"
    ]
