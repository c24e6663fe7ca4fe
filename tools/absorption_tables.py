"""Tables of findings about H6: what is left of the steps, by the format of the stored weights."""

from typing import Any

from precision_lib.forensics.evidence import H6Evidence, MasterFormat
from precision_lib.forensics.h6.declaration import H6
from precision_lib.forensics.verdicts import HEALTHY, IMPAIRED, INCONCLUSIVE
from precision_lib.record.record import Record
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import DASH, interval, percent, two
from tools.absorption import RATES, law_of


def h6(record: Record) -> list[str]:
    """Masters by format beside a bf16 and an FP32 policy, the laws, the first step by its size."""
    cells = record.cells_of("H6")
    shown = {name: cells[name].shows(H6Evidence) for name in ("bf16_pure", "fp32_baseline")}
    rows = [
        [f"`{name}`", f"`{fmt}`", *_figures(masters)]
        for name, evidence in shown.items()
        for fmt, masters in evidence.masters.items()
    ]
    pure = shown["bf16_pure"]
    copies = [
        [f"`{fmt}`", f"{law.moved:,}", f"{law.expected:,.0f}", f"{law.z or 0.0:+.1f}"]
        for fmt, law in pure.copies.items()
    ]
    steps = [
        [f"`{fmt}`", *(percent(point.moved_frac) for point in points)]
        for fmt, points in pure.first_step.items()
    ]
    rates = [f"{p.learning_rate:.0e}" for p in next(iter(pure.first_step.values()), ())]
    change = two(pure.logprob_change_rms or 0.0)
    return [
        "### H6: what is left of the steps, by the format that the weights are stored in",
        f"A log-prob changes by {change} nats RMS with a bf16 policy's gradients. *Exceptions*: "
        "weights of the last step that contradict the law of absorption, or are not the nearest "
        "number.",
        table(
            [
                *("gradients", "weights stored in", "error of the change", "share kept"),
                *("copies that move", "stored weights that move", "exceptions"),
            ],
            rows,
        ),
        "Copies of FP32 masters that the first step moves, and what |s| / ulp says:",
        table(["copy", "moved", "derived", "z"], copies),
        "Share of the stored weights that the first step moves, at other learning rates:",
        table(["weights stored in", *rates], steps),
    ]


def _figures(masters: MasterFormat) -> list[str]:
    metrics, laws = masters.metrics, masters.laws
    return [
        interval(metrics["logprob_change_rel_error"]),
        interval(metrics["logprob_change_slope"]),
        *(percent(metrics[name].value) for name in ("weights_moved_frac", "masters_moved_frac")),
        f"{laws.exceptions + laws.off_nearest} of {laws.n:,}",
    ]


def rates_table(records: list[dict[str, Any]]) -> str:
    """A row per model, format and learning rate: what moves and what is lost, beside the law."""
    rows = []
    for record in records:
        stored = {row["learning_rate"]: row["stored"] for row in record["rates"]}
        for fmt in record["ulps"]:
            for rate in RATES:
                law, seen = law_of(record, fmt, rate), stored.get(rate, {}).get(fmt)
                rows.append(
                    (
                        record["context"]["model"],
                        f"`{fmt}`",
                        f"{rate:.0e}",
                        percent(law["moved_frac"]),
                        percent(seen["moved_frac"]) if seen else DASH,
                        percent(law["kept"]),
                        percent(seen["logprob_change_slope"]["value"]) if seen else DASH,
                        _damage(seen["logprob_change_rel_error"]) if seen else DASH,
                    )
                )
    return table(
        [
            *("model", "weights stored in", "learning rate", "move in the first step: law"),
            *("measured", "change kept: law", "measured", "error of the change [95 %]"),
        ],
        rows,
    )


def _damage(figure: dict[str, Any]) -> str:
    verdict = HEALTHY if figure["high"] <= H6.decision.limit else INCONCLUSIVE
    verdict = IMPAIRED if figure["low"] > H6.decision.limit else verdict
    return f"{two(figure['value'])} [{two(figure['low'])}, {two(figure['high'])}] {verdict}"
