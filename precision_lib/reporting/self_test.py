"""What the self-test found, as lines: fault, who caught it, with what margin."""

from collections.abc import Sequence

from precision_lib.record.changes import LARGEST
from precision_lib.record.self_test import CleanRuns, FaultOutcome
from precision_lib.reporting.styles import Line

_STYLE = {
    "caught": "green",
    "missed": "red",
    "below the noise floor": "yellow",
    "false alarm": "red",
}


def self_test_lines(faults: Sequence[FaultOutcome], clean: CleanRuns | None) -> list[Line]:
    """Lines of a terminal table of what ``self_test.json`` holds."""
    names = max((len(fault.name) for fault in faults), default=0)
    lines: list[Line] = []
    for fault in faults:
        text = f"{fault.name:<{names}}  {fault.outcome:<7} {caught_by(fault)}"
        lines.append((text.rstrip(), _STYLE[fault.outcome]))
    if faults:
        counts = {outcome: sum(f.outcome == outcome for f in faults) for outcome in _STYLE}
        text = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        lines += [("", ""), (f"{len(faults)} faults: {text}", "bold")]
    return lines + ([] if clean is None else [("", ""), *clean_lines(clean)])


def caught_by(fault: FaultOutcome) -> str:
    """Who caught a fault, with the margin; or from which size on it would be."""
    if not fault.caught:
        smallest = fault.smallest_detectable
        return f"the gate sees it from {smallest} on" if smallest else ""
    first, *others = fault.caught
    margin = next((c.margin for c in fault.caught if c.margin is not None), None)
    text = first.by + (f" and {len(others)} more" if others else "")
    if margin is None:
        return text
    size = "not finite" if margin >= LARGEST else f"{margin:.3g} times the limit"
    return f"{text}, {size}"


def clean_lines(clean: CleanRuns) -> list[Line]:
    """What the clean runs found, red where there was a false alarm."""
    lines = [
        f"{clean.runs} clean runs, seeds {seed_ranges(clean.seeds)}, against "
        f"seed {clean.baseline_seed}: {clean.false_alarms} false alarms in "
        f"{clean.comparisons} comparisons; nearest {clean.worst_share_of_limit:.0%} of the "
        f"limit ({clean.worst_metric})"
    ]
    alarms = clean.alarms
    if (before := clean.against_the_run_before) is not None:
        alarms += before.alarms
        lines.append(
            f"each against the run before: {before.false_alarms} false alarms in "
            f"{before.comparisons} comparisons; nearest {before.worst_share_of_limit:.0%} "
            f"({before.worst_metric})"
        )
    return [(text, "red" if alarms else "green") for text in lines] + [(a, "red") for a in alarms]


def seed_ranges(seeds: Sequence[int]) -> str:
    """``1 to 5 and 9 to 12``."""
    starts = [s for s in seeds if s - 1 not in seeds]
    ends = [s for s in seeds if s + 1 not in seeds]
    return " and ".join(f"{a} to {b}" for a, b in zip(starts, ends, strict=True))
