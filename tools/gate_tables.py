"""What a self-test and a calibration found, as the tables of a document."""

from precision_lib.compare.directions import direction
from precision_lib.record.self_test import Calibration, SelfTest
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import two
from precision_lib.reporting.self_test import caught_by, clean_lines


def self_test_tables(result: SelfTest) -> str:
    """Markdown of a whole ``self_test.json``: counts, clean runs, a row per fault."""
    faults, clean = result.faults, result.clean_runs
    harmful = [f for f in faults if f.outcome in ("caught", "missed")]
    harmless = [f for f in faults if f not in harmful]
    caught = sum(f.outcome == "caught" for f in harmful)
    quiet = sum(f.outcome != "false alarm" for f in harmless)
    counts = f"{caught} of {len(harmful)} faults caught"
    parts = [f"{counts}; {quiet} of {len(harmless)} harmless changes left alone."]
    if clean is not None:
        parts += [f"- {text}." for text, _ in clean_lines(clean)]
    rows = [
        (f"`{f.name}`", f.meaning, f.source, f"{f.outcome}: {caught_by(f)}")
        for f in (*harmful, *harmless)
    ]
    headings = ("fault", "what goes wrong", "seen in", "outcome")
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n\n".join(["\n".join(parts), table(headings, cells, numbers=False)])


def calibration_table(result: Calibration) -> str:
    """Markdown: the gated errors of ``bf16_pure`` and ``fp32_baseline``, floor and reach."""
    rows = [
        (
            f"{hypothesis} `{name}`",
            configuration,
            two(value),
            two(result.floors[hypothesis][configuration][name]),
            two(result.smallest[hypothesis][configuration][name]),
        )
        for hypothesis, cells in result.values.items()
        for configuration in ("bf16_pure", "fp32_baseline")
        for name, value in cells[configuration].items()
        if direction(hypothesis, name).scale == "ratio"
    ]
    headings = ("metric", "configuration", "now", "noise floor", "found from")
    varied = ", ".join(result.variations)
    device, budget = result.context.device_name, result.context.budget
    text = f"Measured on {device} ({budget} budget): {varied}."
    return f"{text}\n\n{table(headings, rows)}"
