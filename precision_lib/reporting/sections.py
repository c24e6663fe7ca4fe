"""What the page says, section by section, from verdict to evidence.

Every section is always there; one that has nothing to show says so and how to measure it.
"""

from collections.abc import Callable
from typing import Any

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.reporting.plots import benchmarks, faults, training, verdicts
from precision_lib.reporting.plots.cells import with_interval
from precision_lib.reporting.plots.picture import NothingToDrawError, Picture, Table
from precision_lib.reporting.provenance import method, provenance
from precision_lib.reporting.results import Results
from precision_lib.reporting.section import Section, checked, command_of
from precision_lib.reporting.self_test import seed_ranges

Block = dict[str, Any]
EVIDENCE: dict[str, tuple[str, Callable[[Block], Picture]]] = {
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
        _drawn(results, "report", "verdicts", "Every cell", verdicts.heat_map),
        _regressions(results),
        *(_evidence(results, name) for name in EVIDENCE),
        _training(results),
        _drawn(results, "benchmarks", "benchmarks", "Benchmarks", benchmarks.ratios),
        _fault_matrix(results),
        method(results),
        provenance(results),
    ]


def _content(results: Results, kind: str) -> dict[str, Any] | None:
    return results.block if kind == "report" else getattr(results, kind)


def _drawn(
    results: Results,
    kind: str,
    place: str,
    title: str,
    draw: Callable[[dict[str, Any]], Picture | list[Picture]],
    paragraphs: tuple[str, ...] = (),
) -> Section:
    """A section with the pictures of one file, or with the command that makes it."""
    content, command = _content(results, kind), command_of(results, kind)
    if content is None:
        return Section(place, title, missing="not measured", command=command)
    try:
        found = checked(results, kind, lambda: draw(content))
    except NothingToDrawError as error:
        return Section(place, title, paragraphs, missing=str(error), command=command)
    pictures = tuple(found) if isinstance(found, list) else (found,)
    return Section(place, title, paragraphs, pictures=pictures, command=command)


def _hypotheses(results: Results) -> Section:
    title, command = "Verdicts", command_of(results, "report")
    block = results.block
    if block is None:
        return Section("hypotheses", title, missing="not measured", command=command)
    headings = (
        *("hypothesis", "verdict", "share of the damage removed by promotion"),
        *("damage added by demotion", "controls"),
    )
    rows = checked(
        results, "report", lambda: tuple(_verdict(block, h) for h in block["hypotheses"])
    )
    words = tuple(f"{h['hypothesis']}: {h['explanation']}" for h in block["hypotheses"])
    if not rows:
        return Section("hypotheses", title, missing="no hypothesis was judged", command=command)
    return Section("hypotheses", title, words, tables=(Table(headings, rows),))


def _verdict(block: Block, found: dict[str, Any]) -> tuple[str, ...]:
    contrasts = found["contrasts"]
    name = found["hypothesis"]
    return (
        f"{name} {block['thresholds'][name]['title']}",
        found["verdict"],
        with_interval(contrasts["promotion_damage_healed"]),
        f"{with_interval(contrasts['demotion_damage_added'])} "
        + contrasts["demotion_damage_added"]["unit"],
        _control(found),
    )


def _control(found: dict[str, Any]) -> str:
    return "null" if found["control"]["is_null"] else "NOT NULL"


def _regressions(results: Results) -> Section:
    """Against the baseline: what got worse, or that nothing did, or that nobody looked."""
    title = "Regressions"
    if results.report is None:
        command = command_of(results, "report")
        return Section("regressions", title, missing="not measured", command=command)
    block = results.report["precision"]  # the core alone can be worse, without a single cell
    found = block.get("regressions", [])
    gate = block.get("gate") or {}
    if found:
        return Section("regressions", title, items=tuple(r["message"] for r in found), alarm=True)
    obstacles = tuple(map(str, gate.get("obstacles", ())))
    if not (block.get("baseline") or gate.get("baseline")):
        return Section("regressions", title, ("No baseline was given.",))
    if obstacles:
        said = ("Inconclusive: not everything could be compared with the baseline.",)
        return Section("regressions", title, said, items=obstacles, alarm=True)
    return Section("regressions", title, ("None.",))


def _evidence(results: Results, name: str) -> Section:
    title, draw = EVIDENCE[name]
    block = results.block
    place = name.lower()
    if block is not None and not any(c["hypothesis"] == name for c in block["cells"]):
        command = command_of(results, "report")
        return Section(place, title, missing="not measured in this record", command=command)
    words = tuple(
        f"Verdict: {h['verdict']}, controls {_control(h)}."
        for h in (block or {"hypotheses": []})["hypotheses"]
        if h["hypothesis"] == name
    )
    return _drawn(results, "report", place, title, draw, words)


def _training(results: Results) -> Section:
    sweep = results.sweep
    words: tuple[str, ...] = ()
    if sweep is not None and sweep["evidence"]:
        words = tuple(
            f"{v['hypothesis']} {v['title']}, in training: {v['verdict']}. {v['explanation']}"
            for v in sweep["evidence"]["hypotheses"]
        )
    elif sweep is not None:
        words = (f"Nothing was compared: {sweep['not_compared']}",)
    failed = sweep["failed"].items() if sweep else ()
    words = (*(f"FAILED {name}: {reason}" for name, reason in failed), *words)
    title = "PPO training"
    return _drawn(results, "sweep", "training", title, training.pictures, words)


def _fault_matrix(results: Results) -> Section:
    words: tuple[str, ...] = ()
    if results.self_test and (clean := results.self_test["clean_runs"]):
        words = (
            f"Clean runs: {clean['runs']}, seeds {seed_ranges(clean['seeds'])}, with "
            f"{clean['false_alarms']} false alarms in {clean['comparisons']:,} comparisons; the "
            f"nearest came to {clean['worst_share_of_limit']:.0%} of its limit.",
        )
    title = "Planted faults"
    return _drawn(results, "self_test", "faults", title, faults.matrix, words)
