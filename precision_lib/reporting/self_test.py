"""What the self-test found, as a table: fault, who caught it, with what margin."""

from typing import Any

from precision_lib.records.changes import LARGEST
from precision_lib.reporting.markdown import table
from precision_lib.reporting.styles import Line

_STYLE = {
    "caught": "green",
    "missed": "red",
    "below the noise floor": "yellow",
    "false alarm": "red",
}


def self_test_lines(faults: list[dict[str, Any]], clean: dict[str, Any] | None) -> list[Line]:
    """Lines of a terminal table.

    Args:
        faults, clean: as ``self_test.json`` holds them.
    """
    names = max((len(fault["name"]) for fault in faults), default=0)
    lines: list[Line] = []
    for fault in faults:
        text = f"{fault['name']:<{names}}  {fault['outcome']:<7} {caught_by(fault)}"
        lines.append((text.rstrip(), _STYLE[fault["outcome"]]))
    if faults:
        counts = {outcome: sum(f["outcome"] == outcome for f in faults) for outcome in _STYLE}
        text = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        lines += [("", ""), (f"{len(faults)} faults: {text}", "bold")]
    return lines + ([] if clean is None else [("", ""), *_clean_lines(clean)])


def caught_by(fault: dict[str, Any]) -> str:
    """Who caught a fault, with the margin; or from which size on it would be."""
    if not fault["caught"]:
        smallest = fault["smallest_detectable"]
        return f"the gate sees it from {smallest} on" if smallest else ""
    first, *others = fault["caught"]
    margin = next((c["margin"] for c in fault["caught"] if c["margin"] is not None), None)
    text = str(first["by"]) + (f" and {len(others)} more" if others else "")
    if margin is None:
        return text
    size = "not finite" if float(margin) >= LARGEST else f"{float(margin):.3g} times the limit"
    return f"{text}, {size}"


def _clean_lines(clean: dict[str, Any]) -> list[Line]:
    before = clean["against_the_run_before"]
    lines = [
        f"{clean['runs']} clean runs, seeds {seed_ranges(clean['seeds'])}, against "
        f"seed {clean['baseline_seed']}: {clean['false_alarms']} false alarms in "
        f"{clean['comparisons']} comparisons; nearest {clean['worst_share_of_limit']:.0%} of the "
        f"limit ({clean['worst_metric']})",
        f"each against the run before: {before['false_alarms']} false alarms in "
        f"{before['comparisons']} comparisons; nearest {before['worst_share_of_limit']:.0%} "
        f"({before['worst_metric']})",
    ]
    alarms = clean["alarms"] + before["alarms"]
    return [(text, "red" if alarms else "green") for text in lines] + [(a, "red") for a in alarms]


def seed_ranges(seeds: list[int]) -> str:
    """``1 to 5 and 9 to 12``."""
    starts = [s for s in seeds if s - 1 not in seeds]
    ends = [s for s in seeds if s + 1 not in seeds]
    return " and ".join(f"{a} to {b}" for a, b in zip(starts, ends, strict=True))


def self_test_tables(result: dict[str, Any]) -> str:
    """Markdown of a whole ``self_test.json``: counts, clean runs, a row per fault."""
    faults, clean = result["faults"], result["clean_runs"]
    harmful = [f for f in faults if f["outcome"] in ("caught", "missed")]
    harmless = [f for f in faults if f not in harmful]
    caught = sum(f["outcome"] == "caught" for f in harmful)
    quiet = sum(f["outcome"] != "false alarm" for f in harmless)
    counts = f"{caught} of {len(harmful)} faults caught"
    parts = [f"{counts}; {quiet} of {len(harmless)} harmless changes left alone."]
    if clean is not None:
        parts += [f"- {text}." for text, _ in _clean_lines(clean)]
    rows = [
        (f"`{f['name']}`", f["meaning"], f["source"], f"{f['outcome']}: {caught_by(f)}")
        for f in (*harmful, *harmless)
    ]
    headings = ("fault", "what goes wrong", "seen in", "outcome")
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n\n".join(["\n".join(parts), table(headings, cells, numbers=False)])
