"""Where the figures come from, by what rules they were judged, and what is wrong with a record.

What is wrong (half a run, a planted fault) stands above everything that the record says.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from precision_lib.forensics.hypothesis import BATCH_VARIANCE
from precision_lib.reporting.commits import commit_of
from precision_lib.reporting.plots.cells import number, shown
from precision_lib.reporting.plots.faults import BAD
from precision_lib.reporting.plots.picture import Table
from precision_lib.reporting.results import Results
from precision_lib.reporting.section import Section, checked, command_of


def alarms(results: Results) -> list[str]:
    """What a reader has to know before anything else, in big words; none when all is in order.

    Raises:
        ResultsError: a file lacks what this version shows.
    """
    found: list[str] = []
    if results.report:
        block = results.report["precision"]
        found += checked(results, "report", lambda: _record_alarms(block))
    if sweep := results.sweep:
        found += checked(results, "sweep", lambda: _sweep_alarms(sweep))
    if self_test := results.self_test:
        found += checked(results, "self_test", lambda: _fault_alarms(self_test))
    return found


def _record_alarms(block: dict[str, Any]) -> list[str]:
    found = []
    if block.get("planted_fault"):
        fault = block["planted_fault"]
        found.append(f"PLANTED FAULT: {fault}. Nothing here is a measurement.")
    done = {(c["hypothesis"], c["configuration"]) for c in block["cells"]}
    missing = [f"{h} {c}" for h, c in block.get("expected", []) if (h, c) not in done]
    if missing or not block.get("complete", True):
        said = ", ".join(missing) or "the run measured no hypothesis"
        found.append(f"INCOMPLETE: not measured: {said}.")
    for h in block["hypotheses"]:
        if not h["control"]["is_null"]:
            found.append(f"CONTROL NOT NULL: {h['hypothesis']} cannot be trusted.")
    if block.get("regressions"):
        found.append(f"REGRESSIONS: {len(block['regressions'])}.")
    if block["context"].get("budget") == "quick":
        found.append("A first look (--quick), not the whole budget.")
    return found


def _sweep_alarms(sweep: dict[str, Any]) -> list[str]:
    if sweep["complete"]:
        return []
    ended = sum(run["status"] != "unfinished" for run in sweep["runs"])
    return [f"INCOMPLETE SWEEP: {ended} of {len(sweep['runs'])} runs ended."]


def _fault_alarms(self_test: dict[str, Any]) -> list[str]:
    found = []
    for outcome in BAD:
        names = [f["name"] for f in self_test["faults"] if f["outcome"] == outcome]
        found += [f"SELF-TEST, {outcome.upper()}: {', '.join(names)}."] if names else []
    return found


def headline(results: Results) -> list[tuple[str, str]]:
    """What, when, on which device, from which commit and seed: name and value."""
    if report := results.report:
        found: list[tuple[str, str]] = checked(results, "report", lambda: _of_record(report))
        return found
    if results.sweep:
        steps = ("training", f"{results.sweep['max_steps']} PPO steps a run")
        return [steps, *_where(results.sweep["context"])]
    if results.self_test:
        return _where(results.self_test["context"])
    return [("measured", str((results.benchmarks or {}).get("datetime", "unknown"))[:10])]


def _of_record(report: dict[str, Any]) -> list[tuple[str, str]]:
    context = report["precision"]["context"]
    model = str(context.get("checkpoint", {}).get("name", "none"))
    return [("model", model), ("measured", when(report.get("created"))), *_where(context)]


def when(created: Any) -> str:
    """A time in UTC from seconds since 1970, as pytest-json-report writes them."""
    if not isinstance(created, int | float):
        return "unknown"
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _where(context: dict[str, Any]) -> list[tuple[str, str]]:
    device, seed = context.get("device", {}).get("name"), context.get("seed")
    return [
        ("device", str(device or "unknown")),
        ("commit", _commit(context)),
        ("seed", "unknown" if seed is None else str(seed)),
    ]


def _commit(context: dict[str, Any]) -> str:
    commit = context.get("commit") or {}
    changed = " with uncommitted changes" if commit.get("dirty") else ""
    return commit_of(context, 12) + changed


def method(results: Results) -> Section:
    """How a verdict is reached, with every limit and the floors that were measured."""
    block, title = results.block, "Method and limits"
    if block is None:
        command = command_of(results, "report")
        return Section("method", title, missing="not measured", command=command)
    rows = checked(results, "report", lambda: _limits(block))
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
            "in FP32. Demoted: FP32 with that component alone in bf16.",
            "Each hypothesis has controls that must come out null; the golden reference is FP32 on "
            "the same frozen tokens, itself measured against float64.",
        ),
        tables=(Table(headings, rows),),
    )


def _limits(block: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for name, row in block["thresholds"].items():
        floors = block.get("noise_floors", {}).get(name, {}).values()
        largest = max((number(f["value"]) for f in floors), default=None)
        variances = [
            number(cell["metrics"][BATCH_VARIANCE]["value"])
            for cell in block["cells"]
            if cell["hypothesis"] == name and BATCH_VARIANCE in cell["metrics"]
        ]
        variance = shown(max(variances, default=None))
        limit = f"{row['limit']:.3g}"
        title = f"{name} {row['title']}"
        rows.append((title, row["metric"], limit, shown(largest), variance, row["meaning"]))
    return tuple(rows)


def provenance(results: Results) -> Section:
    """Versions, checkpoints, formats as observed, and every switch that changes numbers."""
    readers: dict[str, Callable[[dict[str, Any]], list[Table]]] = {
        "report": lambda r: [
            _context(r["precision"]["context"], "The forensics record"),
            *_formats(r["precision"]),
        ],
        "sweep": lambda r: [_context(r["context"], "The sweep"), _settings(r["settings"])],
        "self_test": lambda r: [_context(r["context"], "The self-test")],
        "benchmarks": lambda r: [_machine(r["machine_info"])],
    }
    tables: list[Table] = []
    for kind, read in readers.items():
        content = getattr(results, kind)
        if content is not None:
            tables += checked(results, kind, partial(read, content))
    return Section("provenance", "Provenance", tables=tuple(tables))


def _settings(settings: dict[str, Any]) -> Table:
    rows = tuple((name, str(value)) for name, value in settings.items())
    return Table(("setting", "value"), rows, "PPO settings of the sweep")


def _machine(machine: dict[str, Any]) -> Table:
    names = ("python_version", "torch", "threads", "machine")
    rows = tuple((n, str(machine[n])) for n in names if n in machine)
    return Table(("", "value"), rows, "The benchmarks")


def _context(context: dict[str, Any], caption: str) -> Table:
    rows = [("commit", commit_of(context)), *_where(context)[::2]]
    rows += [("python", str(context.get("python"))), ("platform", str(context.get("platform")))]
    for role in ("checkpoint", "reward_model"):
        model = context.get(role)
        rows += [(f"{role}, SHA-256", f"{model['name']}, {model['sha256']}")] if model else []
    rows += [(name, str(version)) for name, version in context.get("versions", {}).items()]
    rows += [(name, str(value)) for name, value in context.get("settings", {}).items()]
    rows += [(name, value) for name, value in context.get("overrides", {}).items() if value]
    return Table(("", "value"), tuple(rows), caption)


def _formats(block: dict[str, Any]) -> list[Table]:
    observed = block["context"].get("observed_formats") or {}
    if not observed:
        return []
    parts = list(dict.fromkeys(part for formats in observed.values() for part in formats))
    rows = tuple(
        (name, *(str(formats.get(part, "–")) for part in parts))
        for name, formats in observed.items()
    )
    return [Table(("configuration", *parts), rows, "Formats as observed at run time")]
