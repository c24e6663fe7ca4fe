"""The committed baseline: of this matrix and this budget, and each of its limits can be passed.

The hazard. A limit of minus infinity, or of a share below 0, is never passed, and its metric is
gated in name only; a baseline of an older budget makes every run inconclusive on the day somebody
needs it.
"""

from dataclasses import asdict, replace
from pathlib import Path

from precision_lib.compare.baseline import load_baseline, write_baseline
from precision_lib.compare.cells import noise_floor
from precision_lib.compare.directions import direction, worst_possible
from precision_lib.compare.gate import judge
from precision_lib.compare.margins import is_beyond, margin
from precision_lib.conformance.checks import checks
from precision_lib.forensics.budget import budget
from precision_lib.forensics.evidence import Evidence
from precision_lib.forensics.verdicts import Cell
from precision_lib.jsonio import to_plain
from precision_lib.matrix import all_configurations
from precision_lib.record.record import Record, nothing_measured

FILE = Path(__file__).parents[3] / "baselines" / "cpu.json"
BASELINE = load_baseline(FILE)
assert BASELINE.conformance is not None
CORE = BASELINE.conformance
GATED = [
    (hypothesis, configuration, metric)
    for hypothesis, cells in BASELINE.cells.items()
    for configuration, cell in cells.items()
    for metric in cell.metrics
    if direction(hypothesis, metric).scale
]


def record() -> Record:
    """The run behind the baseline, as far as the gate reads it."""
    cells = tuple(
        Cell(h, c, cell.verdict, cell.metrics, Evidence(true_kl=cell.true_kl))
        for h, cells in BASELINE.cells.items()
        for c, cell in cells.items()
    )
    return replace(
        nothing_measured(),
        context=BASELINE.context,
        matrix=BASELINE.matrix,
        expected=tuple(cell.key for cell in cells),
        cells=cells,
        conformance=BASELINE.conformance,
    )


def test_it_is_no_worse_than_itself() -> None:
    judgement = judge(record(), BASELINE)
    assert not (judgement.inconclusive)
    assert not (judgement.worse)
    assert not judgement.better
    functions = len(CORE.functions)
    assert judgement.compared == len(GATED) + functions
    assert judgement.blind == ()


def test_each_of_its_limits_can_be_passed() -> None:
    measured = record()
    unpassable = []
    for hypothesis, configuration, metric in GATED:
        known = BASELINE.cells[hypothesis][configuration].metrics[metric]
        how = direction(hypothesis, metric)
        floor = noise_floor(hypothesis, configuration, metric, measured, BASELINE)
        limit = margin(known, known, how, len(GATED), floor).limit
        if not is_beyond(worst_possible(metric, known.unit), limit, how.worse):
            unpassable.append(f"{hypothesis} {configuration} {metric}: limit {limit}")
    assert len(GATED) > 100
    assert not unpassable


def test_it_is_of_the_present_matrix_budget_and_checks() -> None:
    now = {c.name: c.components for c in all_configurations(None)}
    assert BASELINE.matrix == now
    whole = budget()
    context = BASELINE.context
    assert context.budget == "whole"
    assert context.probe == to_plain(asdict(whole.settings["H1"]))
    assert context.h3 == to_plain(asdict(whole.settings["H3"]))
    assert context.trajectories is not None
    assert context.trajectories.settings.max_new_tokens == whole.freeze.max_new_tokens
    tests = {name: counts.tests for name, counts in CORE.functions.items()}
    mine = [check.function for check in checks()]
    assert tests == {name: mine.count(name) for name in set(mine)}


def test_it_is_of_a_clean_commit() -> None:
    assert BASELINE.context.commit is not None
    assert BASELINE.context.commit.dirty is False


def test_it_is_written_as_it_would_be_now(tmp_path: Path) -> None:
    write_baseline(tmp_path / "cpu.json", BASELINE)
    assert (tmp_path / "cpu.json").read_bytes() == FILE.read_bytes()
