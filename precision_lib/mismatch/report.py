"""The record of a judgement: strict JSON that scripts and agents read."""

import math
from typing import Any

from precision_lib.exit_codes import INCONCLUSIVE, OK, REGRESSION
from precision_lib.mismatch.cost import cost
from precision_lib.mismatch.counters import counters
from precision_lib.mismatch.detectable import in_words, smallest_found
from precision_lib.mismatch.experiments import next_experiments
from precision_lib.mismatch.judgement import CANNOT_SAY, EQUAL, PRECISION, Judgement
from precision_lib.mismatch.noise import formats_that_explain
from precision_lib.mismatch.significance import FALSE_ALARMS
from precision_lib.weights.findings import as_json

SCHEMA = "precision-forensics/mismatch/1"


def exit_code(judgement: Judgement) -> int:
    """0 equal or precision within the limits, 1 a bug or beyond them, 2 cannot say."""
    if judgement.verdict == CANNOT_SAY:
        return INCONCLUSIVE
    fine = judgement.verdict in (EQUAL, PRECISION) and not judgement.beyond_limit
    return OK if fine else REGRESSION


def record(judgement: Judgement) -> dict[str, Any]:
    """``verdict``, ``evidence``, ``cost`` and ``next``, and what they rest on."""
    numbers = counters(judgement.dump)
    return {
        "schema": SCHEMA,
        "source": judgement.dump.source,
        "verdict": judgement.verdict,
        "cause": judgement.cause,
        "exit_code": exit_code(judgement),
        "evidence": evidence(judgement),
        "cost": cost(judgement.dump),
        "next": next_experiments(judgement),
        "also_possible": list(judgement.also_possible),
        "false_alarm_rate": FALSE_ALARMS,
        "claimed": {k: v for k, v in vars(judgement.dump.claims).items() if v is not None},
        "counters": numbers,
        "size": _size(judgement),
        "fingerprints": {name: _test(p) for name, p in judgement.fingerprints.items()},
        "smallest_found": smallest_found(judgement.fingerprints),
        "weights": None if judgement.weights is None else as_json(judgement.weights),
        "notes": list(judgement.dump.notes),
    }


def _test(p: Any) -> dict[str, Any]:
    return {
        "value": p.value,
        "standard_error": p.error if math.isfinite(p.error) else None,
        "margin": p.margin,
        "limit": p.limit if math.isfinite(p.limit) else None,
        "rejects": p.rejects,
        "meaning": p.words,
    }


def _size(judgement: Judgement) -> dict[str, Any]:
    size = judgement.size
    return {
        "sigma": size.sigma,
        "typical": size.limit.typical if size.limit else None,
        "usual_limit": size.usual if math.isfinite(size.usual) else None,
        "largest_limit": size.largest if math.isfinite(size.largest) else None,
        "noise_floor": size.floor,
        "formats_that_explain": formats_that_explain(size.sigma),
    }


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
