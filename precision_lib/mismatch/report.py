"""The record of a judgement: strict JSON that scripts and agents read."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from precision_lib.exit_codes import INCONCLUSIVE, OK, REGRESSION
from precision_lib.jsonio import JsonObject
from precision_lib.mismatch.cost import Cost, cost
from precision_lib.mismatch.counters import counters
from precision_lib.mismatch.detectable import in_words, smallest_found
from precision_lib.mismatch.experiments import next_experiments
from precision_lib.mismatch.judgement import CANNOT_SAY, EQUAL, PRECISION, Judgement, Size
from precision_lib.mismatch.noise import formats_that_explain
from precision_lib.mismatch.sample import Fingerprint
from precision_lib.mismatch.significance import FALSE_ALARMS
from precision_lib.weights.findings import Outcome, as_json

SCHEMA = "precision-forensics/mismatch/1"


def exit_code(judgement: Judgement) -> int:
    """0 equal or precision within the limits, 1 a bug or beyond them, 2 cannot say."""
    if judgement.verdict == CANNOT_SAY:
        return INCONCLUSIVE
    fine = judgement.verdict in (EQUAL, PRECISION) and not judgement.beyond_limit
    return OK if fine else REGRESSION


@dataclass(frozen=True)
class RoundingTest:
    """A fingerprint in the record; None for what is infinite."""

    value: float
    standard_error: float | None
    margin: float
    limit: float | None
    rejects: bool
    meaning: str


@dataclass(frozen=True)
class SizeOfNoise:
    """How large d is, nats, beside what the claims allow; None without claims."""

    sigma: float
    typical: float | None
    usual_limit: float | None
    largest_limit: float | None
    noise_floor: float | None
    formats_that_explain: list[str]


@dataclass(frozen=True)
class Scored:
    """The engine against a model in one format: sigma in nats, counters, cost."""

    sigma: float
    counters: Mapping[str, float]
    cost: Cost


@dataclass(frozen=True)
class ScoredInBoth(Scored):
    """The same, where FP32 was scored too: sigmas of both sides against it, nats."""

    trainer_sigma: float
    engine_sigma: float
    correlation: float


@dataclass(frozen=True)
class Report:
    """``verdict``, ``evidence``, ``cost`` and ``next``, and what they rest on.

    Attributes:
        model, scored: name and hash of the model that the engine's side was scored with, and the
            engine against each format; None for a dump of both sides.
    """

    schema: str
    source: str
    verdict: str
    cause: str
    exit_code: int
    evidence: list[str]
    cost: Cost
    next: list[str]
    also_possible: list[str]
    false_alarm_rate: float
    claimed: Mapping[str, str | float]
    counters: Mapping[str, float]
    size: SizeOfNoise
    fingerprints: Mapping[str, RoundingTest]
    smallest_found: Mapping[str, float]
    weights: Outcome | None
    notes: list[str]
    model: Mapping[str, str] | None = None
    scored: Mapping[str, Scored] | None = None


def report_of(judgement: Judgement) -> Report:
    """What is said of a judgement."""
    return Report(
        schema=SCHEMA,
        source=judgement.dump.source,
        verdict=judgement.verdict,
        cause=judgement.cause,
        exit_code=exit_code(judgement),
        evidence=evidence(judgement),
        cost=cost(judgement.dump),
        next=next_experiments(judgement),
        also_possible=list(judgement.also_possible),
        false_alarm_rate=FALSE_ALARMS,
        claimed={k: v for k, v in vars(judgement.dump.claims).items() if v is not None},
        counters=counters(judgement.dump),
        size=_size(judgement.size),
        fingerprints={name: _test(p) for name, p in judgement.fingerprints.items()},
        smallest_found=smallest_found(judgement.fingerprints),
        weights=judgement.weights,
        notes=list(judgement.dump.notes),
    )


def as_record(report: Report) -> JsonObject:
    """The object that ``--json`` writes."""
    record = asdict(replace(report, weights=None))
    record["weights"] = None if report.weights is None else as_json(report.weights)
    return {k: v for k, v in record.items() if v is not None or k not in ("model", "scored")}


def _test(p: Fingerprint) -> RoundingTest:
    return RoundingTest(p.value, _finite(p.error), p.margin, _finite(p.limit), p.rejects, p.words)


def _size(size: Size) -> SizeOfNoise:
    return SizeOfNoise(
        size.sigma,
        size.limit.typical if size.limit else None,
        _finite(size.usual),
        _finite(size.largest),
        size.floor,
        formats_that_explain(size.sigma),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evidence(judgement: Judgement) -> list[str]:
    """At most five sentences: what decides, the size, what else was tested, what could be seen."""
    numbers = counters(judgement.dump)
    lines = list(judgement.reasons[:3])
    lines.append(
        f"{numbers['tokens']} tokens of {numbers['sequences']} sequences"
        f"{' (after the repair)' if judgement.problems else ''}: std of d "
        f"{numbers['logprob_diff_std']:.3g}, mean {numbers['logprob_diff_mean']:.3g}, k3 "
        f"{numbers['kl_k3']:.3g}, largest {numbers['logprob_abs_diff_max']:.3g} nats"
    )
    sizes = in_words(judgement.fingerprints)
    if sizes and judgement.verdict in (EQUAL, PRECISION, CANNOT_SAY):
        lines.append(f"smallest faults found with 90 % here: {'; '.join(sizes)}")
    return lines
