"""A real model beside the embedded one, for docs/findings.md: damage by cell, and verdicts."""

from pathlib import Path

from precision_lib.compare.baseline import Baseline, summary_of
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.record.files import load_record
from precision_lib.record.record import Record
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import interval
from tools.findings import whole_step

#: The run of the embedded model that the real one is set beside.
EMBEDDED = Path(__file__).parents[1] / "docs" / "records" / "cpu.json"


def load_real_model(path: Path) -> tuple[Record, Record]:
    """(record of a run on a real model, that of the embedded model).

    Raises:
        RecordError: the file is no record.
    """
    return load_record(path), load_record(EMBEDDED)


def real_model_tables(records: tuple[Record, Record]) -> str:
    """Damage of every cell and of a whole step of the real model, and the verdicts of both."""
    real, embedded = map(summary_of, records)
    context = real.context
    quick = ", --quick" if context.is_quick else ""
    title = (
        f"Model `{context.model_name}`, prompts `{context.prompts['name']}`, seed {context.seed}"
        f"{quick}, commit {context.commit_digits(12)}."
    )
    _, *step = whole_step(records[0]) or [""]
    return "\n\n".join([title, _cells(real), _verdicts(real, embedded), *step])


def _cells(real: Baseline) -> str:
    hypotheses = [h for h in DECISIONS if h in real.cells]
    rows = [[f"`{name}`", *(_cell(real, h, name) for h in hypotheses)] for name in real.matrix]
    titles = [f"{h} `{DECISIONS[h].metric}`" for h in hypotheses]
    return table(["configuration", *titles], rows)


def _cell(run: Baseline, hypothesis: str, configuration: str) -> str:
    cell = run.cell(hypothesis, configuration)
    if cell is None:
        return ""
    verdict = cell.verdict if cell.verdict != "impaired" else "**impaired**"
    return f"{interval(cell.metrics[DECISIONS[hypothesis].metric])} {verdict}"


def _verdicts(real: Baseline, embedded: Baseline) -> str:
    rows = [
        [
            f"{h} {decision.title}",
            *(run.hypotheses[h].verdict if h in run.hypotheses else "" for run in (real, embedded)),
            *(_cell(run, h, decision.pure) for run in (real, embedded)),
        ]
        for h, decision in DECISIONS.items()
    ]
    names = [run.context.model_name for run in (real, embedded)]
    headings = ["", *(f"verdict, {name}" for name in names)]
    return table([*headings, *(f"16 bits, {name}" for name in names)], rows)
