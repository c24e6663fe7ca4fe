"""What the page says, section by section, from verdict to evidence.

Every section is always there; one that has nothing to show says so and how to measure it.
"""

from collections.abc import Callable
from typing import TypeVar

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.verdicts import HypothesisVerdict
from precision_lib.record.record import Record
from precision_lib.reporting.damage import HEADINGS, damage_notes, damage_rows, damage_title
from precision_lib.reporting.numbers import with_interval
from precision_lib.reporting.plots import benchmarks, faults, training, verdicts
from precision_lib.reporting.plots.picture import NothingToDrawError, Picture, Table
from precision_lib.reporting.provenance import method, provenance
from precision_lib.reporting.results import Results
from precision_lib.reporting.section import Section, checked, command_of
from precision_lib.reporting.self_test import seed_ranges

T = TypeVar("T")
EVIDENCE: dict[str, tuple[str, Callable[[Record], Picture]]] = {
    name: (f"{name}, {h.decision.title}", h.picture)
    for name, h in HYPOTHESES.items()
    if h.picture is not None
}


def sections(results: Results) -> list[Section]:
    """All sections in the order of the page, with their pictures drawn.

    Raises:
        ResultsError: a file lacks what this version draws; the message names it.
    """
    return [
        _hypotheses(results),
        _drawn(results, results.measured, "report", "verdicts", "Every cell", verdicts.heat_map),
        _regressions(results),
        *(_evidence(results, name) for name in EVIDENCE),
        _training(results),
        _benchmarks(results),
        _fault_matrix(results),
        method(results),
        provenance(results),
    ]


def _drawn(
    results: Results,
    content: T | None,
    kind: str,
    place: str,
    title: str,
    draw: Callable[[T], Picture | list[Picture]],
    paragraphs: tuple[str, ...] = (),
) -> Section:
    """A section with the pictures of one file, or with the command that makes it."""
    command = command_of(results, kind)
    if content is None:
        return Section(place, title, missing="not measured", command=command)
    try:
        drawn = checked(results, kind, lambda: draw(content))
    except NothingToDrawError as error:
        return Section(place, title, paragraphs, missing=str(error), command=command)
    pictures = tuple(drawn) if isinstance(drawn, list) else (drawn,)
    return Section(place, title, paragraphs, pictures=pictures, command=command)


def _hypotheses(results: Results) -> Section:
    title, command = "Verdicts", command_of(results, "report")
    record = results.measured
    if record is None:
        return Section("hypotheses", title, missing="not measured", command=command)
    headings = (
        *("hypothesis", "verdict", "share of the damage removed by promotion"),
        *("damage added by demotion", "controls"),
    )
    rows = checked(results, "report", lambda: tuple(_verdict(record, h) for h in record.hypotheses))
    words = tuple(f"{h.hypothesis}: {h.explanation}" for h in record.hypotheses)
    if not rows:
        return Section("hypotheses", title, missing="no hypothesis was judged", command=command)
    tables = (Table(headings, rows), *_error_budgets(record), *_whole_step(record))
    return Section("hypotheses", title, words, tables=tables)


def _error_budgets(record: Record) -> tuple[Table, ...]:
    """What each component makes of the damage; no table for an earlier record."""
    rows = tuple(
        (f"{h.hypothesis} {name}", f"{with_interval(share)} {share.unit}")
        for h in record.hypotheses
        if h.error_budget is not None
        for name, share in (
            *h.error_budget.shares.items(),
            ("in FP32", h.error_budget.remaining),
            ("whole", h.error_budget.whole),
        )
    )
    caption = (
        "Error budget: the damage in 16 bits, split among the components. A share is the mean of "
        "what promoting the component removes, over all orders of promotion (Shapley value)."
    )
    return (Table(("hypothesis, component", "share of the damage"), rows, caption),) if rows else ()


def _whole_step(record: Record) -> tuple[Table, ...]:
    """What each configuration does to a PPO step; no table for an earlier record."""
    damage = record.pipeline_damage
    if damage is None:
        return ()
    caption = f"{damage_title(damage)}. {' '.join(damage_notes(damage))}"
    return (Table(HEADINGS, damage_rows(damage), caption),)


def _verdict(record: Record, verdict: HypothesisVerdict) -> tuple[str, ...]:
    added = verdict.contrasts["demotion_damage_added"]
    return (
        f"{verdict.hypothesis} {record.thresholds[verdict.hypothesis].title}",
        verdict.verdict,
        with_interval(verdict.contrasts["promotion_damage_healed"]),
        f"{with_interval(added)} {added.unit}",
        _control(verdict),
    )


def _control(verdict: HypothesisVerdict) -> str:
    return "null" if verdict.control.is_null else "NOT NULL"


def _regressions(results: Results) -> Section:
    """Against the baseline: what got worse, or that nothing did, or that nobody looked."""
    title = "Regressions"
    record = results.report  # the core alone can be worse, without a single cell
    if record is None:
        command = command_of(results, "report")
        return Section("regressions", title, missing="not measured", command=command)
    if record.regressions:
        messages = tuple(change.message for change in record.regressions)
        return Section("regressions", title, items=messages, alarm=True)
    if record.gate is None:
        return Section("regressions", title, ("No baseline was given.",))
    if record.gate.obstacles:
        text = ("Inconclusive: not everything could be compared with the baseline.",)
        return Section("regressions", title, text, items=record.gate.obstacles, alarm=True)
    return Section("regressions", title, ("None.",))


def _evidence(results: Results, name: str) -> Section:
    title, draw = EVIDENCE[name]
    record = results.measured
    place = name.lower()
    if record is not None and not record.cells_of(name):
        command = command_of(results, "report")
        return Section(place, title, missing="not measured in this record", command=command)
    words = tuple(
        f"Verdict: {h.verdict}, controls {_control(h)}."
        for h in (record.hypotheses if record else ())
        if h.hypothesis == name
    )
    return _drawn(results, record, "report", place, title, draw, words)


def _training(results: Results) -> Section:
    sweep = results.sweep
    words: tuple[str, ...] = ()
    if sweep is not None and sweep.evidence is not None:
        words = tuple(
            f"{v.hypothesis} {v.title}, in training: {v.verdict}. {v.explanation}"
            for v in sweep.evidence.hypotheses
        )
    elif sweep is not None:
        words = (f"Nothing was compared: {sweep.not_compared}",)
    failed = sweep.failed.items() if sweep else ()
    words = (*(f"FAILED {name}: {reason}" for name, reason in failed), *words)
    title = "PPO training"
    return _drawn(results, sweep, "sweep", "training", title, training.pictures, words)


def _benchmarks(results: Results) -> Section:
    content, place = results.benchmarks, "benchmarks"
    return _drawn(results, content, place, place, "Benchmarks", benchmarks.ratios)


def _fault_matrix(results: Results) -> Section:
    words: tuple[str, ...] = ()
    self_test = results.self_test
    if self_test and (clean := self_test.clean_runs):
        words = (
            f"Clean runs: {clean.runs}, seeds {seed_ranges(clean.seeds)}, with "
            f"{clean.false_alarms} false alarms in {clean.comparisons:,} comparisons; the "
            f"nearest came to {clean.worst_share_of_limit:.0%} of its limit.",
        )
    title = "Planted faults"
    return _drawn(results, self_test, "self_test", "faults", title, faults.matrix, words)
