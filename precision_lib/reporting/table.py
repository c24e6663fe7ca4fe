"""The summary table of a run, as plain lines with a style each.

Symptom and damage stand side by side, each with the unit in its heading.
"""

from collections.abc import Callable, Mapping

from precision_lib.forensics.evidence import CurvePoint, H1Evidence
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.hypothesis import BATCH_VARIANCE
from precision_lib.forensics.shapley import ErrorBudget
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell
from precision_lib.record.conformance import Conformance
from precision_lib.record.context import Context
from precision_lib.record.record import Record
from precision_lib.reporting.consequences import sentence
from precision_lib.reporting.damage import damage_lines
from precision_lib.reporting.grid import grid_lines
from precision_lib.reporting.numbers import interval, two
from precision_lib.reporting.reproduction import EMBEDDED
from precision_lib.reporting.styles import STYLES, Line
from precision_lib.reporting.training import sweep_lines

Shown = Callable[[Mapping[str, Metric]], str]


def _value(name: str, form: str) -> Shown:
    return lambda metrics: format(metrics[name].value, form)


def _interval(name: str) -> Shown:
    return lambda metrics: interval(metrics[name])


#: Heading, width, text of a cell's metrics.
_COLUMNS: tuple[tuple[str, int, Shown], ...] = (
    ("KL mean", 8, _value("kl_penalty_mean", ".2e")),
    ("d = 0", 6, _value("log_ratio_near_zero_frac", ".1%")),
    ("noise/signal [95 %]", 26, _interval("log_ratio_nsr")),
    ("k3 error", 9, _value("kl_k3_rel_error", "+.1%")),
    ("k3<0", 5, _value("k3_negative_frac", ".0%")),
    ("written*", 8, _value("k3_textbook_negative_frac", ".0%")),
)


def h1_table(record: Record) -> list[Line]:
    """Lines for the H1 cells of a record; none when there is no such cell."""
    cells = record.cells_of("H1")
    if not cells:
        return []
    names = max(map(len, ("configuration", *cells)))
    heading = "configuration".ljust(names) + "  " + "policy/ref/KL".ljust(14) + "  "
    heading += "  ".join(title.rjust(width) for title, width, _ in _COLUMNS) + "  verdict"
    title = _title(record, next(iter(cells.values())))
    lines: list[Line] = [(title, ""), ("", ""), (heading, "bold")]
    for name, cell in cells.items():
        formats = record.matrix[name]
        shown = "/".join(formats[c] for c in ("policy", "reference", "kl"))
        text = f"{name:<{names}}  {shown:<14}  "
        text += "  ".join(show(cell.metrics).rjust(width) for _, width, show in _COLUMNS)
        lines.append((f"{text}  {cell.verdict}", STYLES[cell.verdict]))
    return [*lines, ("", ""), *_notes(record)]


def curve_table(record: Record) -> list[Line]:
    """The collapse curve: noise over signal of each configuration at each true KL."""
    curves = {name: curve_of(cell) for name, cell in record.cells_of("H1").items()}
    if not curves:
        return []
    names, points = max(map(len, ("configuration", *curves))), next(iter(curves.values()))
    heading = "configuration".ljust(names) + "".join(f"{p.true_kl:>10.1e}" for p in points)
    lines: list[Line] = [("noise/signal against the true KL, nats/token", ""), (heading, "bold")]
    for name, curve in curves.items():
        values = "".join(two(p.metrics["log_ratio_nsr"].value).rjust(10) for p in curve)
        lines.append((name.ljust(names) + values, ""))
    return lines


def curve_of(cell: Cell) -> list[CurvePoint]:
    """The collapse curve of an H1 cell, from the smallest true KL on."""
    return sorted(cell.shows(H1Evidence).curve, key=lambda p: p.true_kl)


def _title(record: Record, cell: Cell) -> str:
    return (
        f"H1 KL collapse ({record.context.model_name}): policy at a true KL of "
        f"{cell.evidence.true_kl:.2e} nats/token, {cell.metrics['log_ratio_nsr'].n} tokens; "
        f"impaired above noise/signal {record.thresholds['H1'].limit:.2g}"
    )


def _notes(record: Record) -> list[Line]:
    lines = [
        ("symptom: d = 0, log-ratios with no signal; damage: noise/signal, RMS error of the", ""),
        ("log-ratio over its RMS. * k3 < 0 when written as exp(-d) - 1 + d.", ""),
    ]
    if floors := record.golden_floors("H1"):
        lines.append(
            (f"FP32 against itself in another batch order and size: {max(floors):.1g}", "")
        )
    return lines


def matrix_table(record: Record) -> list[Line]:
    """Configurations x hypotheses: the damage metric and the verdict of each cell.

    None when there is no cell.
    """
    hypotheses, by_key = record.measured_hypotheses, record.by_key
    rows = list(dict.fromkeys(cell.configuration for cell in record.cells))
    if not rows:
        return []
    names = max(map(len, ("configuration", *rows)))
    titles = [f"{h} {record.thresholds[h].title}" for h in hypotheses]
    widths = [max(len(t), len("0.00054 inconclusive")) for t in titles]
    heading = "configuration".ljust(names)
    heading += "".join(f"  {t:<{w}}" for t, w in zip(titles, widths, strict=True))
    measured_on = _measured_on(record.context)
    lines: list[Line] = [(measured_on, ""), *grid_lines(record.context), ("", "")]
    lines.append((heading.rstrip(), "bold"))
    for row in rows:
        cells = [by_key.get((h, row)) for h in hypotheses]
        shown = [_damage_and_verdict(record, cell) for cell in cells]
        text = row.ljust(names)
        text += "".join(f"  {x:<{w}}" for x, w in zip(shown, widths, strict=True))
        lines.append((text.rstrip(), STYLES[_worst(cells)]))
    return [*lines, ("", ""), *_thresholds(record, hypotheses), *batch_variance_lines(record)]


def _measured_on(context: Context) -> str:
    """Model, device and seed of a run, and whether it was only a first look."""
    seed = "unknown" if context.seed is None else context.seed
    quick = "; a first look (--quick), not the whole budget" if context.is_quick else ""
    return f"{measured_models(context)} on {context.device_name}, seed {seed}{quick}"


def measured_models(context: Context) -> str:
    """Policy, reward model and prompts of a run, and which of them are not the user's.

    A record that names no prompts was made with the embedded ones. One that names no reward model
    used none.
    """
    names = {
        "policy": context.checkpoint.name if context.checkpoint else "unknown",
        "reward model": context.reward_model.name if context.reward_model else None,
        "prompts": context.prompts.get("name", EMBEDDED),
    }
    used = {role: name for role, name in names.items() if name is not None}
    shown = [f"{role} {name}" for role, name in used.items() if name != EMBEDDED]
    embedded = [role for role, name in used.items() if name == EMBEDDED]
    if embedded:
        first, last = ", ".join(embedded[:-1]), embedded[-1]
        shown.append(f"{f'{first} and {last}' if first else last} embedded, not yours")
    return ", ".join(shown)


def _damage_and_verdict(record: Record, cell: Cell | None) -> str:
    if cell is None:
        return "-"
    damage = cell.metrics[record.thresholds[cell.hypothesis].metric]
    return f"{two(damage.value):<7} {cell.verdict}"


def _worst(cells: list[Cell | None]) -> str:
    verdicts = {cell.verdict for cell in cells if cell is not None}
    return next(v for v in ("impaired", "inconclusive", "healthy") if v in verdicts)


def _thresholds(record: Record, hypotheses: list[str]) -> list[Line]:
    """What the number in each column is, and above what a cell is impaired."""
    lines: list[Line] = []
    for h in hypotheses:
        row, cell = record.thresholds[h], next(iter(record.cells_of(h).values()))
        unit = cell.metrics[row.metric].unit
        lines.append((f"{h}: {row.metric} ({unit}), impaired above {row.limit:.2g}", ""))
    return lines


def batch_variance_lines(record: Record) -> list[Line]:
    """How far two batch shapes of one ``bf16_pure`` model differ, a line per hypothesis."""
    cells = [
        cell
        for cell in record.cells
        if cell.configuration == "bf16_pure" and BATCH_VARIANCE in cell.metrics
    ]
    if not cells:
        return []
    if all(cell.metrics[BATCH_VARIANCE].value == 0 for cell in cells):
        return [("two batch shapes of one bf16 model give the same bits", "")]
    lines: list[Line] = [("two batch shapes of one bf16 model differ by", "")]
    for cell in cells:
        of = HYPOTHESES[cell.hypothesis].variance_of.format(kl=cell.evidence.true_kl or 0.0)
        variance = two(cell.metrics[BATCH_VARIANCE].value)
        lines.append((f"{cell.hypothesis}: {variance} {of}", ""))
    return lines


def error_budget_lines(budget: ErrorBudget | None) -> list[Line]:
    """One line: what each component makes of the damage; none where there is one component."""
    if budget is None or len(budget.shares) < 2:
        return []
    shares = " + ".join(f"{name} {interval(m)}" for name, m in budget.shares.items())
    whole, remaining = two(budget.whole.value), two(budget.remaining.value)
    return [(f"error budget: {whole} = {shares} + {remaining} in FP32", "")]


def hypothesis_lines(record: Record) -> list[Line]:
    """One line per hypothesis verdict, then its explanation."""
    lines: list[Line] = []
    for h in record.hypotheses:
        null = "null, as it must be" if h.control.is_null else "NOT NULL"
        lines.append((f"{h.hypothesis}: {h.verdict} (controls {null})", "bold"))
        lines.append((h.explanation, ""))
        lines += error_budget_lines(h.error_budget)
    return lines


def conformance_table(conformance: Conformance | None) -> list[Line]:
    """One line per function of the core under test; none when no check was run."""
    if conformance is None:
        return []
    heading = f"{'function':<18}{'tests':>6}{'failed':>8}{'range':>7}{'inputs':>9}{'compared':>11}"
    whose = f"{conformance.target} {conformance.version}".strip()
    lines: list[Line] = [
        (f"conformance of {whose} to FP32", ""),
        ("", ""),
        (heading + f"{'error/limit':>13}", "bold"),
    ]
    for name, counts in conformance.functions.items():
        failed = len(counts.failed)
        text = f"{name:<18}{counts.tests:>6}{failed:>8}{len(counts.range):>7}{counts.inputs:>9}"
        text += f"{counts.compared:>11}{counts.worst_over_limit:>13.2g}"
        lines.append((text, "red" if failed else "green"))
    lines += [(f"{name:<18}not offered", "yellow") for name in conformance.not_offered]
    lines += [("", ""), ("error/limit: the largest error as a share of what FP32 may do", "")]
    if any(counts.range for counts in conformance.functions.values()):
        lines.append(("range: failures where only the range of a format ends; --strict counts", ""))
    lines += [(f"note: {note}", "yellow") for note in conformance.notes.values()]
    if conformance.known:
        known = f"{len(conformance.known)} of {conformance.failed} failures are known"
        lines.append((known, ""))
    return [*lines, *_in_rl_terms(conformance)]


def _in_rl_terms(conformance: Conformance) -> list[Line]:
    """What the errors do on an ordinary batch; functions without a consequence are left out."""
    lines = [
        (f"{name:<18}{fmt:<6}{sentence(figures)}", "")
        for name, formats in conformance.consequences.items()
        for fmt, figures in formats.items()
        if sentence(figures) != "none"
    ]
    return [("", ""), ("on an ordinary batch:", "bold"), *lines] if lines else []


def summary(record: Record, *, details: bool = False) -> list[Line]:
    """The whole summary of a run, with ``details`` the tables of each hypothesis too.

    Empty when it measured nothing.
    """
    blank: Line = ("", "")
    parts = [conformance_table(record.conformance)]
    if record.cells:
        parts += [h1_table(record), curve_table(record)] if details else []
        parts += [matrix_table(record), hypothesis_lines(record)]
        missing = [] if record.complete else record.missing
        text = f"INCOMPLETE: not measured: {', '.join(missing)}"
        parts.append([(text, "red")] if missing else [])
    parts.append(damage_lines(record.pipeline_damage))
    if record.training is not None:
        parts.append(sweep_lines(record.training))
    lines = [line for part in parts if part for line in (*part, blank)][:-1]
    if lines and record.planted_fault:
        fault = f"PLANTED FAULT: {record.planted_fault}; nothing here is a measurement"
        lines.append((fault, "red"))
    return lines
