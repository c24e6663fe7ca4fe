"""The tables of each hypothesis, from the cells of a record.

The hazard. A table that averages over what a hypothesis is about hides it: each one here shows the
figure against the quantity that it depends on, beside what was derived for it.
"""

from collections.abc import Mapping
from itertools import pairwise

from precision_lib.forensics.evidence import (
    AccumulatedError,
    H1Evidence,
    H2Evidence,
    H3Evidence,
    H4Evidence,
)
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell
from precision_lib.record.record import Record
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import interval, percent, two
from tools.absorption_tables import h6
from tools.mismatch_tables import h5

__all__ = ["h1", "h2", "h3", "h4", "h5", "h6"]

DAMAGE = "advantage_rms_error"


def _or_none(value: float | None, none: str = "") -> str:
    return none if value is None else two(value)


def h1(record: Record) -> list[str]:
    """The collapse curve, and what each path reports at the operating point."""
    cells = record.cells_of("H1")
    shown = {name: cell.shows(H1Evidence) for name, cell in cells.items()}
    first = next(iter(shown.values()))
    curve = [
        [f"`{name}`", *(two(p.metrics["log_ratio_nsr"].value) for p in evidence.curve)]
        for name, evidence in shown.items()
    ]
    rows = [
        [
            f"`{name}`",
            f"{shown[name].executed_kl:.1e}",
            f"{cell.metrics['kl_penalty_mean'].value:.1e}",
            percent(cell.metrics["log_ratio_near_zero_frac"].value),
            interval(cell.metrics["log_ratio_nsr"]),
        ]
        for name, cell in cells.items()
    ]
    columns = ["KL of the models as executed", "KL reported (k3)", "zero log-ratios"]
    return [
        "### H1: noise over signal of the log-ratio against the true KL, nats per token",
        table(["configuration", *(f"{p.true_kl:.1e}" for p in first.curve)], curve),
        f"At a true KL of {first.true_kl:.2e}:",
        table(["configuration", *columns, "noise/signal"], rows),
    ]


def h2(record: Record) -> list[str]:
    """Causes on the real scores, and the synthetic distributions beside the law."""
    evidence = record.cells_of("H2")["bf16_pure"].shows(H2Evidence)
    native, law, synthetic = evidence.native, evidence.storing_law, evidence.synthetic
    if native is None or law is None or synthetic is None:
        raise ValueError("H2 bf16_pure lacks its rewards, the law of storing or synthetic rewards")
    causes = [
        [
            name.replace("_", " "),
            interval(metrics[DAMAGE]),
            interval(metrics["batch_advantage_rms_error"]),
            percent(metrics["reward_tie_frac"].value),
        ]
        for name, metrics in evidence.causes.items()
    ]
    families = [
        [
            family.rewards,
            percent(family.reward_tie_frac),
            two(family.reward_kendall_tau),
            percent(family.advantage_sign_flip_frac),
            two(family.advantage_rms_error),
            _or_none(family.advantage_rms_error_predicted),
            two(family.batch_advantage_rms_error),
        ]
        for family in synthetic.families
    ]
    critical = synthetic.critical_offset_over_spread
    offsets = [
        [two(p.spread), f"{p.predicted:.0f}", f"{p.measured.value:.0f}"]
        for p in (critical.by_spread if critical else ())
    ]
    derived = "" if law.predicted is None else f"; derived {two(law.predicted)}"
    return [
        "### H2: what a bf16 reward model costs on real scores",
        f"Offset over spread {two(native.offset_over_spread)}, bf16 step over spread "
        f"{two(native.resolution_over_spread)}. Storing alone {_or_none(law.measured)}{derived}.",
        table(["rounded", "group advantages", "batch advantages", "ties"], causes),
        "### H2: rewards stored in bf16, 1,024 groups of 8 drawn from known distributions",
        table(
            ["rewards", "ties", "Kendall tau", "sign flips", "group", "derived", "batch"], families
        ),
        "Offset over spread from which on storing in bf16 is above the limit, by the phase of the "
        "spread in its binade:",
        table(["spread", "derived", "measured"], offsets),
    ]


def h3(record: Record) -> list[str]:
    """Stagnation by magnitude, advantages by offset, and the causes one at a time."""
    cell = record.cells_of("H3")["fp32_bf16_value"]
    evidence = cell.shows(H3Evidence)
    if evidence.critic is None:
        raise ValueError("H3 fp32_bf16_value lacks its critic")
    magnitudes = [
        [
            f"{p.magnitude:g}",
            percent(p.metrics["value_stagnation_rate"].value),
            percent(p.value_stagnation_rate_predicted),
            two(p.metrics[DAMAGE].value),
            two(p.advantage_rms_error_predicted),
        ]
        for p in evidence.by_magnitude
    ]
    offsets = [
        [
            f"{p.offset_over_spread:g}",
            interval(p.metrics[DAMAGE]),
            two(p.advantage_rms_error_predicted),
            percent(p.metrics["value_td_zero_frac"].value),
        ]
        for p in evidence.by_offset
    ]
    causes = [
        [
            f"{c.rewards}, {c.cause.replace('_', ' ')}",
            percent(c.metrics["value_stagnation_rate"].value),
            two(c.update_error),
            two(c.metrics[DAMAGE].value),
        ]
        for c in evidence.causes
    ]
    alone = ["rewards, what is rounded", "stand still", "update error", "advantage error"]
    return [
        "### H3: a bf16 value head on FP32 models, by magnitude and by offset",
        f"The critic: RMS value {two(evidence.critic.value_rms)}, explained variance "
        f"{interval(evidence.critic.explained_variance)}. Derived for rounding the stored values "
        "alone.",
        table(
            ["RMS value", "stand still", "derived", "advantage error", "derived"],
            magnitudes,
        ),
        _critical_magnitude(cell),
        table(["offset / spread", "advantage error", "derived", "TD errors lost"], offsets),
        "Impaired from an offset over spread of "
        f"{_or_none(evidence.critical_offset_over_spread, 'none that was tried')} on (derived "
        f"{_or_none(evidence.critical_offset_over_spread_predicted, 'none')}).",
        "### H3: one rounding at a time",
        table(alone, causes),
    ]


def _critical_magnitude(cell: Cell) -> str:
    """From which magnitude on half of the updates do not show, measured and derived."""
    points = cell.shows(H3Evidence).by_magnitude
    derived = half_way(
        [p.magnitude for p in points], [p.value_stagnation_rate_predicted for p in points]
    )
    found = cell.metrics.get("value_critical_magnitude")
    measured = "no magnitude that was tried" if found is None else interval(found)
    return f"Half of the updates stand still from an RMS value of {measured} on (derived " + (
        f"{_or_none(derived, 'none')})."
    )


def half_way(sizes: list[float], rates: list[float]) -> float | None:
    """Size at which a rate first passes one half from below, linear in log size; None if never."""
    for (x0, y0), (x1, y1) in pairwise(zip(sizes, rates, strict=True)):
        if y0 < 0.5 <= y1:
            return float(x0 * (x1 / x0) ** ((0.5 - y0) / (y1 - y0)))
    return None


def h4(record: Record) -> list[str]:
    """Growth and drift per configuration, by position, and on tokens of either source."""
    cells = record.cells_of("H4")
    rows = [
        [f"`{name}`", *_growth(cell.metrics), _length(_sampled(cell))]
        for name, cell in cells.items()
    ]
    pure = _sampled(cells["bf16_pure"])
    positions = [
        [
            f"{p.first + 1} to {p.last + 1}",
            *(two(figure) for figure in (p.token_rms, p.token_mean, p.accumulated_rms)),
        ]
        for p in pure.by_position
    ]
    headings = ["response tokens", "RMS of the token's error", "its mean", "RMS of the sum"]
    parts = [
        "### H4: the log-ratio's error summed over the sequence, nats",
        table(
            [
                *("configuration", "RMS at the end", "growth exponent"),
                *("drift per 1,000 tokens", "ESS", "limit passed after, tokens"),
            ],
            rows,
        ),
        _consequences(pure),
        "`bf16_pure` by position:",
        table(headings, positions),
    ]
    expected = cells["fp32_bf16_policy"].shows(H4Evidence).expected_policy_drift
    if expected:
        sources = [
            [
                f"tokens of {'the policy itself' if source == 'sampled' else 'neither model'}",
                interval(drift.metrics["seen"]),
                interval(drift.metrics["expected_of_golden_tokens"]),
                f"{drift.standard_errors_from_expected:+.1f}",
                f"{drift.standard_errors_from_none:+.1f}",
            ]
            for source, drift in expected.items()
        ]
        title, apart = "drift seen", "standard errors apart"
        parts += [
            "Log-prob of a bf16 policy against FP32, nats per 1,000 tokens:",
            table(["", title, "-KL of FP32 from bf16", apart, "from no drift"], sources),
        ]
    return parts


def _sampled(cell: Cell) -> AccumulatedError:
    """Raises: ValueError: the cell holds no errors of sampled tokens."""
    sampled = cell.shows(H4Evidence).sampled
    if sampled is None:
        raise ValueError(f"{cell.name} lacks its errors on sampled tokens")
    return sampled


def _consequences(sampled: AccumulatedError) -> str:
    """What else a sum over the sequence loses in ``bf16_pure``."""
    stored = sampled.reference_sequence_logprob_error
    return (
        "Of `bf16_pure`'s sequences, by the error alone, "
        f"{percent(sampled.outside_gspo_band_frac)} leave GSPO's clip band of 3e-4 and 4e-4 on "
        f"the length-normalised ratio. A sequence log-prob of the reference is off by "
        f"{two(stored.summed)} nats RMS summed exactly, and by {two(stored.stored)} when the "
        "sum is stored in bf16. The errors of policy and reference have a correlation of "
        f"{two(sampled.error_correlation_of_components)}."
    )


def _growth(metrics: Mapping[str, Metric]) -> list[str]:
    names = (
        "accum_err_final",
        "accum_err_growth_exponent",
        "drift_nats_per_1000_tokens",
        "sequence_ratio_ess",
    )
    return [interval(metrics[name]) if name in metrics else "" for name in names]


def _length(sampled: AccumulatedError) -> str:
    found = sampled.metrics.get("critical_length")
    return "" if found is None else f"{found.value:.0f} [{found.low:.0f}, {found.high:.0f}]"
