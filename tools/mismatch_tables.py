"""Tables of findings about H5: trainer against rollout, by format, by probability, and the laws."""

from precision_lib.forensics.evidence import H5Evidence
from precision_lib.record.record import Record
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import interval, two


def h5(record: Record) -> list[str]:
    """Trainer against rollout: per configuration, by rollout format, by probability, the laws."""
    cells = record.cells_of("H5")
    names = (
        *("rollout_log_ratio_final", "rollout_logprob_abs_diff_mean"),
        *("rollout_token_outside_clip_frac", "rollout_k3", "rollout_sequence_ess"),
    )
    rows = [
        [
            f"`{name}`",
            *(interval(cell.metrics[m]) for m in names),
            _correlation(cell.shows(H5Evidence)),
        ]
        for name, cell in cells.items()
    ]
    pure, golden = (cells[name].shows(H5Evidence) for name in ("bf16_pure", "fp32_baseline"))
    headings = [
        "configuration",
        "RMS of the sum",
        "mean per token",
        "outside 1 +- 0.2",
        "k3",
        "ESS",
    ]
    probabilities = [
        [
            f"{two(p.above)} to {two(p.up_to)}",
            *(two(x) for x in (p.rms, p.sigma, p.sigma_first_order)),
        ]
        for p in pure.by_probability
    ]
    return [
        "### H5: log-probs of trainer minus rollout, nats",
        table([*headings, "correlation of the two errors"], rows),
        "### H5: the rollout's format, beside a bf16 and beside an FP32 trainer",
        "RMS of a token's difference, and what two independent errors would give. *z*: standard "
        "errors by which the two errors are not independent.",
        table(
            ["rollout", "bf16 trainer", "in quadrature", "z", "FP32 trainer", "ESS there"],
            [_rollout_format(f, pure, golden) for f in pure.formats],
        ),
        "`bf16_pure` by the probability of the token:",
        table(
            ["probability", "RMS of the difference", "sigma", "sigma, first order"], probabilities
        ),
        "Standard errors by which a law is missed in `bf16_pure`: "
        + ", ".join(f"{name.removesuffix('_z')} {z:+.1f}" for name, z in pure.laws.items())
        + f". The sum grows with the power {_growth(pure)} of the length.",
    ]


def _growth(evidence: H5Evidence) -> str:
    exponent = evidence.rms_growth_exponent
    return interval(exponent) if exponent else "unknown"


def _correlation(evidence: H5Evidence) -> str:
    return two(evidence.halves["correlation"])


def _rollout_format(fmt: str, pure: H5Evidence, golden: H5Evidence) -> list[str]:
    beside, alone = pure.formats[fmt], golden.formats[fmt]
    return [
        f"`{fmt}`",
        *(two(x) for x in (beside.rms, beside.quadrature_rms)),
        f"{beside.quadrature_z:+.1f}",
        two(alone.rms),
        interval(alone.metrics["rollout_sequence_ess"]),
    ]
