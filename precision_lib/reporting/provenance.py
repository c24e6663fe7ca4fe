"""Where the figures come from, by what rules they were judged, and what is wrong with a record.

What is wrong (half a run, a planted fault) stands above everything that the record says.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from precision_lib.forensics.hypothesis import BATCH_VARIANCE
from precision_lib.record.codec import encode
from precision_lib.record.context import Context
from precision_lib.record.record import Record
from precision_lib.record.self_test import SelfTest
from precision_lib.record.sweep import Sweep
from precision_lib.reporting.numbers import DASH, shown
from precision_lib.reporting.plots.faults import BAD
from precision_lib.reporting.plots.picture import Table
from precision_lib.reporting.results import Results
from precision_lib.reporting.section import Section, checked, command_of


def alarms(results: Results) -> list[str]:
    """What a reader has to know before anything else, in big words; none when all is in order."""
    return [
        *(_record_alarms(results.report) if results.report else ()),
        *(_sweep_alarms(results.sweep) if results.sweep else ()),
        *(_fault_alarms(results.self_test) if results.self_test else ()),
    ]


def _record_alarms(record: Record) -> Iterator[str]:
    if record.planted_fault:
        yield f"PLANTED FAULT: {record.planted_fault}. Nothing here is a measurement."
    if record.missing or not record.complete:
        missing = ", ".join(record.missing) or "the run measured no hypothesis"
        yield f"INCOMPLETE: not measured: {missing}."
    for h in record.hypotheses:
        if not h.control.is_null:
            yield f"CONTROL NOT NULL: {h.hypothesis} cannot be trusted."
    if record.regressions:
        yield f"REGRESSIONS: {len(record.regressions)}."
    if record.context.is_quick:
        yield "A first look (--quick), not the whole budget."


def _sweep_alarms(sweep: Sweep) -> Iterator[str]:
    if not sweep.complete:
        yield f"INCOMPLETE SWEEP: {sweep.ended} of {len(sweep.runs)} runs ended."


def _fault_alarms(self_test: SelfTest) -> Iterator[str]:
    for outcome in BAD:
        names = [fault.name for fault in self_test.faults if fault.outcome == outcome]
        if names:
            yield f"SELF-TEST, {outcome.upper()}: {', '.join(names)}."


def headline(results: Results) -> list[tuple[str, str]]:
    """What, when, on which device, from which commit and seed: name and value."""
    if record := results.report:
        model = record.context.checkpoint.name if record.context.checkpoint else "none"
        about = [("model", model), ("measured", when(record.created))]
        return [*about, *_where(record.context)]
    if results.sweep:
        steps = ("training", f"{results.sweep.max_steps} PPO steps a run")
        return [steps, *_where(results.sweep.context)]
    if results.self_test:
        return _where(results.self_test.context)
    return [("measured", results.benchmarks.day if results.benchmarks else "unknown")]


def when(created: float | None) -> str:
    """A time in UTC from seconds since 1970, as pytest-json-report writes them."""
    if created is None:
        return "unknown"
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _where(context: Context) -> list[tuple[str, str]]:
    device = context.device.name if context.device else ""
    changed = " with uncommitted changes" if context.commit and context.commit.dirty else ""
    return [
        ("device", device or "unknown"),
        ("commit", context.commit_digits(12) + changed),
        ("seed", "unknown" if context.seed is None else str(context.seed)),
    ]


def method(results: Results) -> Section:
    """How a verdict is reached, with every limit and the floors that were measured."""
    record, title = results.measured, "Method and limits"
    if record is None:
        command = command_of(results, "report")
        return Section("method", title, missing="not measured", command=command)
    rows = checked(results, "report", lambda: _limits(record))
    headings = (
        "hypothesis",
        "damage metric",
        "limit",
        "noise of FP32",
        "largest batch variance",
        "its meaning",
    )
    return Section(
        "method",
        title,
        (
            "A cell is impaired when the whole 95 % interval of its damage metric, less the noise "
            "of FP32 in another batch shape, lies above the limit. It is healthy when the interval "
            "and the cell's own batch variance lie at or below, and inconclusive in between. "
            "Intervals are bootstraps over prompts or sequences.",
            "Batch variance: the damage metric of a configuration against itself, in reversed "
            "order and in other micro-batches. On a GPU a row depends on the rows beside it, so "
            "bf16 draws other rounding errors there; the size of the errors hardly changes.",
            "A hypothesis is supported when promoting its component heals bf16_pure and demoting "
            "it harms fp32_baseline, partly supported when one of the two is so, refuted when "
            "neither is, also because nothing was impaired. Promoted: bf16_pure with the component "
            "in FP32. Demoted: FP32 with that component alone in bf16. All configurations have "
            "FP32 masters, so H6 promotes from bf16_pure without them.",
            "Each hypothesis has controls that must come out null; the golden reference is FP32 on "
            "the same frozen tokens, itself measured against float64.",
        ),
        tables=(Table(headings, rows),),
    )


def _limits(record: Record) -> tuple[tuple[str, ...], ...]:
    rows = []
    for name, row in record.thresholds.items():
        largest = max(record.golden_floors(name), default=None)
        variances = [
            cell.metrics[BATCH_VARIANCE].value
            for cell in record.cells_of(name).values()
            if BATCH_VARIANCE in cell.metrics
        ]
        variance = shown(max(variances, default=None))
        limit, title = f"{row.limit:.3g}", f"{name} {row.title}"
        rows.append((title, row.metric, limit, shown(largest), variance, row.meaning))
    return tuple(rows)


def provenance(results: Results) -> Section:
    """Versions, checkpoints, formats as observed, and every switch that changes numbers."""
    tables: list[Table] = []
    if record := results.report:
        tables += [_context(record.context, "The forensics record"), *_formats(record.context)]
    if sweep := results.sweep:
        tables += [_context(sweep.context, "The sweep"), _settings(sweep)]
    if self_test := results.self_test:
        tables.append(_context(self_test.context, "The self-test"))
    if benchmarks := results.benchmarks:
        tables.append(Table(("", "value"), benchmarks.machine, "The benchmarks"))
    return Section("provenance", "Provenance", tables=tuple(tables))


def _settings(sweep: Sweep) -> Table:
    rows = tuple((name, str(value)) for name, value in encode(sweep.settings).items())
    return Table(("setting", "value"), rows, "PPO settings of the sweep")


def _context(context: Context, caption: str) -> Table:
    rows = [("commit", context.commit_digits()), *_where(context)[::2]]
    rows += [("python", str(context.python)), ("platform", str(context.platform))]
    models = (("checkpoint", context.checkpoint), ("reward_model", context.reward_model))
    rows += [(f"{role}, SHA-256", f"{m.name}, {m.sha256}") for role, m in models if m]
    rows += [(name, str(version)) for name, version in context.versions.items()]
    rows += [(name, str(value)) for name, value in context.settings.items()]
    rows += [(name, value) for name, value in context.overrides.items() if value]
    return Table(("", "value"), tuple(rows), caption)


def _formats(context: Context) -> list[Table]:
    observed = context.observed_formats
    if not observed:
        return []
    parts = list(dict.fromkeys(part for formats in observed.values() for part in formats))
    rows = tuple(
        (name, *(formats.get(part, DASH) for part in parts)) for name, formats in observed.items()
    )
    return [Table(("configuration", *parts), rows, "Formats as observed at run time")]
