"""The tables of each hypothesis, from the cells of a record.

The hazard. A table that averages over what a hypothesis is about hides it: each one here shows the
figure against the quantity that it depends on, beside what was derived for it.
"""

from itertools import pairwise
from typing import Any

from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import interval, percent, two
from tools.mismatch_tables import h5

__all__ = ["h1", "h2", "h3", "h4", "h5"]

Block = dict[str, Any]


def _cells(block: Block, hypothesis: str) -> dict[str, Any]:
    return {c["configuration"]: c for c in block["cells"] if c["hypothesis"] == hypothesis}


def _or_none(value: float | None, none: str = "") -> str:
    return none if value is None else two(value)


def h1(block: Block) -> list[str]:
    """The collapse curve, and what each path reports at the operating point."""
    cells = _cells(block, "H1")
    points = next(iter(cells.values()))["evidence"]["curve"]
    curve = [
        [f"`{name}`", *(two(p["log_ratio_nsr"]["value"]) for p in cell["evidence"]["curve"])]
        for name, cell in cells.items()
    ]
    rows = [
        [
            f"`{name}`",
            f"{cell['evidence']['executed_kl']:.1e}",
            f"{cell['metrics']['kl_penalty_mean']['value']:.1e}",
            percent(cell["metrics"]["log_ratio_near_zero_frac"]["value"]),
            interval(cell["metrics"]["log_ratio_nsr"]),
        ]
        for name, cell in cells.items()
    ]
    true_kl = next(iter(cells.values()))["evidence"]["true_kl"]
    columns = ["KL of the models as executed", "KL reported (k3)", "zero log-ratios"]
    return [
        "### H1: noise over signal of the log-ratio against the true KL, nats per token",
        table(["configuration", *(f"{p['true_kl']:.1e}" for p in points)], curve),
        f"At a true KL of {true_kl:.2e}:",
        table(["configuration", *columns, "noise/signal"], rows),
    ]


def h2(block: Block) -> list[str]:
    """Causes on the real scores, and the synthetic distributions beside the law."""
    cell = _cells(block, "H2")["bf16_pure"]
    evidence, damage = cell["evidence"], "advantage_rms_error"
    causes = [
        [
            name.replace("_", " "),
            interval(found[damage]),
            interval(found["batch_advantage_rms_error"]),
            percent(found["reward_tie_frac"]["value"]),
        ]
        for name, found in evidence["causes"].items()
    ]
    families = [
        [
            family["rewards"],
            percent(family["reward_tie_frac"]),
            two(family["reward_kendall_tau"]),
            percent(family["advantage_sign_flip_frac"]),
            two(family[damage]),
            _or_none(family.get(f"{damage}_predicted")),
            two(family["batch_advantage_rms_error"]),
        ]
        for family in evidence["synthetic"]["families"]
    ]
    critical = evidence["synthetic"]["critical_offset_over_spread"]["by_spread"]
    offsets = [
        [two(p["spread"]), f"{p['predicted']:.0f}", f"{p['measured']['value']:.0f}"]
        for p in critical
    ]
    native, law = evidence["native"], evidence["storing_law"]
    derived = "" if law["predicted"] is None else f"; derived {two(law['predicted'])}"
    return [
        "### H2: what a bf16 reward model costs on real scores",
        f"Offset over spread {two(native['offset_over_spread'])}, bf16 step over spread "
        f"{two(native['resolution_over_spread'])}. Storing alone {two(law['measured'])}{derived}.",
        table(["rounded", "group advantages", "batch advantages", "ties"], causes),
        "### H2: rewards stored in bf16, 1,024 groups of 8 drawn from known distributions",
        table(
            ["rewards", "ties", "Kendall tau", "sign flips", "group", "derived", "batch"], families
        ),
        "Offset over spread from which on storing in bf16 is above the limit, by the phase of the "
        "spread in its binade:",
        table(["spread", "derived", "measured"], offsets),
    ]


def h3(block: Block) -> list[str]:
    """Stagnation by magnitude, advantages by offset, and the causes one at a time."""
    cell = _cells(block, "H3")["fp32_bf16_value"]
    evidence, damage = cell["evidence"], "advantage_rms_error"
    magnitudes = [
        [
            f"{p['magnitude']:g}",
            percent(p["value_stagnation_rate"]["value"]),
            percent(p["value_stagnation_rate_predicted"]),
            two(p[damage]["value"]),
            two(p[f"{damage}_predicted"]),
        ]
        for p in evidence["by_magnitude"]
    ]
    offsets = [
        [
            f"{p['offset_over_spread']:g}",
            interval(p[damage]),
            two(p[f"{damage}_predicted"]),
            percent(p["value_td_zero_frac"]["value"]),
        ]
        for p in evidence["by_offset"]
    ]
    causes = [
        [
            f"{c['rewards']}, {c['cause'].replace('_', ' ')}",
            percent(c["value_stagnation_rate"]["value"]),
            two(c["update_error"]),
            two(c[damage]["value"]),
        ]
        for c in evidence["causes"]
    ]
    critic = evidence["critic"]
    alone = ["rewards, what is rounded", "stand still", "update error", "advantage error"]
    return [
        "### H3: a bf16 value head on FP32 models, by magnitude and by offset",
        f"The critic: RMS value {two(critic['value_rms'])}, explained variance "
        f"{interval(critic['explained_variance'])}. Derived for rounding the stored values alone.",
        table(
            ["RMS value", "stand still", "derived", "advantage error", "derived"],
            magnitudes,
        ),
        _critical_magnitude(cell),
        table(["offset / spread", "advantage error", "derived", "TD errors lost"], offsets),
        "Impaired from an offset over spread of "
        f"{_or_none(evidence['critical_offset_over_spread'], 'none that was tried')} on (derived "
        f"{_or_none(evidence['critical_offset_over_spread_predicted'], 'none')}).",
        "### H3: one rounding at a time",
        table(alone, causes),
    ]


def _critical_magnitude(cell: dict[str, Any]) -> str:
    """From which magnitude on half of the updates do not show, measured and derived."""
    points = cell["evidence"]["by_magnitude"]
    derived = half_way(
        [p["magnitude"] for p in points], [p["value_stagnation_rate_predicted"] for p in points]
    )
    found = cell["metrics"].get("value_critical_magnitude")
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


def h4(block: Block) -> list[str]:
    """Growth and drift per configuration, by position, and on tokens of either source."""
    cells = _cells(block, "H4")
    rows = [
        [f"`{name}`", *_growth(cell["metrics"]), _length(cell["evidence"]["sampled"])]
        for name, cell in cells.items()
    ]
    pure = cells["bf16_pure"]["evidence"]
    positions = [
        [
            f"{p['first'] + 1} to {p['last'] + 1}",
            *(two(p[key]) for key in ("token_rms", "token_mean", "accumulated_rms")),
        ]
        for p in pure["sampled"]["by_position"]
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
        _consequences(pure["sampled"]),
        "`bf16_pure` by position:",
        table(headings, positions),
    ]
    expected = cells["fp32_bf16_policy"]["evidence"].get("expected_policy_drift")
    if expected:
        sources = [
            [
                f"tokens of {'the policy itself' if source == 'sampled' else 'neither model'}",
                interval(found["seen"]),
                interval(found["expected_of_golden_tokens"]),
                f"{found['standard_errors_from_expected']:+.1f}",
                f"{found['standard_errors_from_none']:+.1f}",
            ]
            for source, found in expected.items()
        ]
        parts += [
            "Log-prob of a bf16 policy against FP32, nats per 1,000 tokens:",
            table(
                [
                    "",
                    "drift seen",
                    "-KL of FP32 from bf16",
                    "standard errors apart",
                    "from no drift",
                ],
                sources,
            ),
        ]
    return parts


def _consequences(sampled: dict[str, Any]) -> str:
    """What else a sum over the sequence loses in ``bf16_pure``."""
    stored = sampled["reference_sequence_logprob_error"]
    return (
        "Of `bf16_pure`'s sequences, by the error alone, "
        f"{percent(sampled['outside_gspo_band_frac'])} leave GSPO's clip band of 3e-4 and 4e-4 on "
        f"the length-normalised ratio. A sequence log-prob of the reference is off by "
        f"{two(stored['summed'])} nats RMS summed exactly, and by {two(stored['stored'])} when the "
        "sum is stored in bf16. The errors of policy and reference have a correlation of "
        f"{two(sampled['error_correlation_of_components'])}."
    )


def _growth(metrics: dict[str, Any]) -> list[str]:
    names = (
        "accum_err_final",
        "accum_err_growth_exponent",
        "drift_nats_per_1000_tokens",
        "sequence_ratio_ess",
    )
    return [interval(metrics[name]) if name in metrics else "" for name in names]


def _length(sampled: dict[str, Any]) -> str:
    found = sampled.get("critical_length")
    return (
        "" if found is None else f"{found['value']:.0f} [{found['low']:.0f}, {found['high']:.0f}]"
    )
