"""A hypothesis is its folder and one row: a toy is added here, and every room knows it at once."""

import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from precision_lib.compare.directions import DIRECTIONS, direction
from precision_lib.forensics.budget import budget
from precision_lib.forensics.hypotheses import DECISIONS, HYPOTHESES
from precision_lib.forensics.hypothesis import Imported
from precision_lib.matrix import all_configurations
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.estimate import needed_stages
from precision_lib.phases.main_job import MainJob, run_main_job
from precision_lib.phases.work import planned_work
from precision_lib.record.recorder import Recorder
from precision_lib.reporting.sections import EVIDENCE
from precision_lib.reporting.table import summary
from tests.unit.forensics import toy_h0
from tests.unit.forensics.toy_h0 import H0
from tests.unit.small_pipelines import random_pipeline

CONFIGURATIONS = all_configurations(None)


@pytest.fixture
def row() -> Iterator[None]:
    """The one row, and the two tables that are made of it at import; H1 to H4 are left out."""
    tables: tuple[tuple[dict[str, Any], Any], ...] = (
        (HYPOTHESES, H0),
        (DECISIONS, H0.decision),
        (DIRECTIONS, H0.directions),
    )
    before = [dict(table) for table, _ in tables]
    for table, entry in tables:
        table.clear()
        table["H0"] = entry
    yield
    for (table, _), rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)  # in their order


@pytest.fixture(scope="module")
def models() -> Pipeline:
    return random_pipeline()


def test_it_takes_forty_lines() -> None:
    """Without imports, blank lines and the docstring."""
    lines = inspect.getsource(toy_h0).splitlines()
    start = lines.index("H0 = Hypothesis(")
    assert len([line for line in lines[start:] if line.strip()]) <= 40


@pytest.mark.usefixtures("row")
def test_the_main_job_judges_it(models: Pipeline, tmp_path: Path) -> None:
    """bf16 has a step of 2**-7 between 1 and 2, so errors of 2**-7 / sqrt(12) RMS there.

    That is 0.15 % of numbers of RMS sqrt(7/3). The limit is 0.1 %, so the promotion of the KL heals
    it and the demotion harms.
    """
    asked = budget(quick=True)
    path = tmp_path / "report.json"
    run = run_main_job(models, asked, CONFIGURATIONS, path, budget_name="quick")
    verdicts = {cell.configuration: cell.verdict for cell in run.cells.values()}
    assert {verdicts[c.name] for c in CONFIGURATIONS if c.kl == "fp32"} == {"healthy"}
    assert {verdicts[c.name] for c in CONFIGURATIONS if c.kl == "bf16"} == {"impaired"}
    (hypothesis,) = run.hypotheses.values()
    assert (hypothesis.hypothesis, hypothesis.verdict) == ("H0", "supported")
    assert "H0" in planned_work(models, asked, CONFIGURATIONS)
    assert needed_stages(["H0"]) == ("H0",)
    record = run.record()
    assert record.complete
    assert any("H0: stored_nsr" in text for text, _ in summary(record))


@pytest.mark.usefixtures("row")
def test_what_does_not_come_out_null_leaves_it_open(
    models: Pipeline,
) -> None:
    """The planted fault of the toy: its FP32 numbers are no FP32 numbers."""
    job = MainJob(models, budget(quick=True), Recorder(Path("unwritten.json"), CONFIGURATIONS))
    study: Any = job.study("H0")
    study.numbers = study.numbers.double() * (1 + 2.0**-30)
    assert study.verdict().verdict == "inconclusive"


def test_the_gate_asks_which_way_it_gets_worse(row: None) -> None:
    assert direction("H0", "stored_nsr").scale == "ratio"
    with pytest.raises(ValueError, match="H0 brand_new has no direction"):
        direction("H0", "brand_new")


@pytest.mark.parametrize("name", HYPOTHESES)
def test_everything_that_a_declaration_names_exists(name: str) -> None:
    """A function is looked up when it is called; here all of them are."""
    declared = HYPOTHESES[name]
    assert declared.name == name == declared.decision.hypothesis
    named = [x.name for x in vars(declared).values() if isinstance(x, Imported)]
    assert len(named) >= 3
    assert all(callable(pkgutil.resolve_name(function)) for function in named)
    assert declared.directions[declared.decision.metric].scale
    assert set(EVIDENCE) >= {name}
