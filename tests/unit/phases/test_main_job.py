"""The main job on random models: ended after k cells and continued, it gives the record of one run.

The hazard. A cell of other code, of another model or of another seed looks like any other, and a
record that holds one is wrong without a trace.
"""

import copy
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precision_lib.forensics.budget import Budget, budget
from precision_lib.forensics.evidence import H1Evidence, H2Evidence
from precision_lib.forensics.h2 import families
from precision_lib.forensics.policy_shift import OPERATING_KL
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell
from precision_lib.jsonio import append_line
from precision_lib.matrix import all_configurations, get_configuration
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.main_job import MainJob, open_main_job, run_main_job
from precision_lib.record.files import block_of
from precision_lib.record.record import Record
from precision_lib.record.recorder import Recorder, load_cells, unfinished_run
from precision_lib.record.resume import ResumeError, continue_run, differences, earlier_run
from tests.unit.small_pipelines import random_pipeline

ROOT = Path(__file__).parents[3]

#: What the verdicts of H1 to H4 look at, and no more.
CONFIGURATIONS = [
    c for c in all_configurations(None) if c.name not in ("mixed_recommended", "fp32_bf16_policy")
]
CELLS = 6 * len(CONFIGURATIONS)


class EndedError(Exception):
    """Stands for whatever ends a process between two cells."""


@pytest.fixture(scope="module", autouse=True)
def _few_synthetic_rewards() -> Iterator[None]:
    """H2 spends most of its time here on evidence that no verdict looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "GROUPS", 64)
        yield


@pytest.fixture(scope="module")
def models() -> Pipeline:
    return random_pipeline()


@pytest.fixture(scope="module")
def small() -> Budget:
    return small_budget()


def small_budget() -> Budget:
    """H1 to H6 on random models in a second or two."""
    quick = budget(quick=True)
    return (
        replace(quick, freeze=replace(quick.freeze, max_new_tokens=8))
        .changed("H1", seq_lengths=(8,), target_kls=(OPERATING_KL,))
        .changed("H3", magnitudes=(1.0,), offsets=(0.0, 30.0))
        .changed("H4", length=48, expected=2)
        .changed("H5", length=32, opening=5)
        .changed("H6", steps=2)
    )


@pytest.fixture(scope="module")
def run(models: Pipeline, small: Budget) -> Callable[..., Recorder]:
    """The main job below a directory; ``ends_after`` so many cells."""

    def run(directory: Path, ends_after: int = -1, **options: Any) -> Recorder:
        measured = 0

        def progress(cells: int) -> None:
            nonlocal measured
            measured += cells
            if measured == ends_after:
                raise EndedError

        given: dict[str, Any] = {
            **{"budget": small, "pipeline": models, "configurations": CONFIGURATIONS},
            **options,
        }
        return run_main_job(
            path=directory / "report.json", budget_name="small", progress=progress, **given
        )

    return run


@pytest.fixture(scope="module")
def whole(run: Callable[..., Recorder], tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of a run that nothing ended."""
    return run(tmp_path_factory.mktemp("whole")).record()


@pytest.fixture(scope="module")
def ended_once(run: Callable[..., Recorder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run that was ended after one cell."""
    directory = tmp_path_factory.mktemp("ended")
    with pytest.raises(EndedError):
        run(directory, ends_after=1)
    return directory


@pytest.fixture
def ended(ended_once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(ended_once, tmp_path / "ended")


def without_run(record: Record) -> str:
    """The block as the file has it, but for the run's identifier."""
    return json.dumps(block_of(replace(record, run="")))


@pytest.mark.parametrize("cells", [len(CONFIGURATIONS) + 3, CELLS])
def test_a_run_that_was_ended_and_continued_is_one_run(
    cells: int, run: Callable[..., Recorder], whole: Record, tmp_path: Path
) -> None:
    """Bit for bit, key order included; and a cell is measured and written once."""
    with pytest.raises(EndedError):
        run(tmp_path, ends_after=cells)
    assert f"after {cells} of {CELLS} cells" in str(unfinished_run(tmp_path / "report.json"))
    recorder = run(tmp_path, resume=True)
    assert len(recorder.earlier) == cells
    assert without_run(recorder.record()) == without_run(whole)
    written = load_cells(recorder.cells_path, recorder.run)
    assert len(written) == len(recorder.cells) == CELLS
    recorder.write()
    assert unfinished_run(recorder.path) is None


def test_a_run_that_was_ended_twice_keeps_the_cells_of_both(
    run: Callable[..., Recorder], tmp_path: Path
) -> None:
    for cells in (2, 5):
        with pytest.raises(EndedError):
            run(tmp_path, ends_after=cells, resume=True)
    earlier = earlier_run(tmp_path / "report.json")
    assert earlier is not None
    assert len(earlier.cells) == 5


def test_a_finished_cell_is_not_measured_again(
    models: Pipeline, small: Budget, ended: Path
) -> None:
    """Planted: a finished cell with another number. It comes out as it was written."""
    cells = ended / "cells.jsonl"
    lines = [json.loads(line) for line in cells.read_text().splitlines()]
    [measured] = [line for line in lines if "metrics" in line]
    measured["evidence"]["true_kl"] = 123.0
    cells.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recorder = Recorder(ended / "report.json", CONFIGURATIONS)
    job = open_main_job(models, small, recorder, budget_name="small", resume=True)
    assert job.cell("H1", CONFIGURATIONS[0]).evidence.true_kl == 123.0
    assert job.cell("H1", CONFIGURATIONS[1]).evidence.true_kl != 123.0


OTHERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    r"budget\.settings\.H1\.seed = 0, this one has 1": lambda small: {
        "budget": small.changed("H1", seed=1)
    },
    r"budget\.settings\.H4\.length = 48, this one has 64": lambda small: {
        "budget": small.changed("H4", length=64)
    },
    r"models\.reference\.name = .*moved": lambda _: {"pipeline": random_pipeline(moved=2.0**-6)},
    r"matrix\.mixed_recommended = null": lambda _: {"configurations": all_configurations(None)},
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_run_of_something_else_is_refused_by_name(
    message: str, run: Callable[..., Recorder], small: Budget, ended: Path
) -> None:
    with pytest.raises(ResumeError, match=message):
        run(ended, resume=True, **OTHERS[message](small))


@pytest.mark.parametrize(
    "name",
    [
        *("planted_fault", "commit.sha", "commit.dirty", "python", "versions.torch", "threads"),
        *("device.class", "cpu.features", "settings.grad_enabled", "code"),
        "overrides.NVIDIA_TF32_OVERRIDE",
    ],
)
def test_what_a_cell_depends_on_has_to_agree(name: str, ended: Path) -> None:
    """Each altered in the origin that the ended run wrote down."""
    earlier = earlier_run(ended / "report.json")
    assert earlier is not None
    altered: Any = copy.deepcopy(earlier.origin)
    place = altered
    *outer, last = name.split(".")
    for key in outer:
        place = place[key]
    assert last in place
    place[last] = "another"
    recorder = Recorder(ended / "report.json", CONFIGURATIONS)
    with pytest.raises(ResumeError, match=f"made with {name} = "):
        continue_run(recorder, altered)
    assert not recorder.earlier


def test_a_killed_process_is_continued(whole: Record, tmp_path: Path) -> None:
    """SIGKILL in the middle of a cell's line: no handler runs, and half a line is left."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from precision_lib.record import recorder\n"
        "from tests.unit.phases import test_main_job as job\n"
        "from precision_lib.phases.main_job import run_main_job\n"
        "lines = 0\n"
        "def append(path, value):\n"
        "    global lines\n"
        "    lines += 1\n"
        "    if lines > 3:\n"  # begun, two cells
        "        with path.open('a') as file:\n"
        "            file.write(str(value)[:99])\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    job.append_line(path, value)\n"
        "recorder.append_line = append\n"
        "run_main_job(job.random_pipeline(), job.small_budget(), job.CONFIGURATIONS,\n"
        "             Path(sys.argv[1]) / 'report.json', budget_name='small')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    recorder = Recorder(tmp_path / "report.json", CONFIGURATIONS)
    earlier = earlier_run(recorder.path)
    assert earlier is not None
    assert list(earlier.cells) == [("H1", c.name) for c in CONFIGURATIONS[:2]]
    assert earlier.cells["H1", "bf16_pure"] == whole.cells[0]


def test_without_an_earlier_run_a_new_one_begins(tmp_path: Path) -> None:
    """Also where the last one ended before its models were loaded, and where it wrote elsewhere."""
    recorder = Recorder(tmp_path / "report.json", ())
    continue_run(recorder, {"code": "x"})
    Recorder(tmp_path / "report.json", ()).begin()
    Recorder(tmp_path / "other.json", (), run="other").begin()
    append_line(tmp_path / "cells.jsonl", {"run": "other", "origin": {"code": "y"}})
    before = recorder.run
    continue_run(recorder, {"code": "x"})
    assert (recorder.run, recorder.earlier) == (before, {})


def test_cells_of_a_release_that_did_not_say_their_origin_are_refused(tmp_path: Path) -> None:
    old = Recorder(tmp_path / "report.json", ())
    old.begin()
    old.add_cell(Cell("H1", "bf16_pure", "impaired", {}, H1Evidence()))
    with pytest.raises(ResumeError, match="did not say what it was made from"):
        continue_run(Recorder(tmp_path / "report.json", ()), {"code": "x"})


def test_non_finite_numbers_come_back_as_numbers(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "report.json", ())
    recorder.begin()
    floor = Metric(math.inf, -math.inf, math.inf, 1, "information")
    evidence = H1Evidence(true_kl=math.inf, golden_floor=floor)
    recorder.add_cell(Cell("H1", "bf16_pure", "impaired", {}, evidence))
    earlier = earlier_run(recorder.path)
    assert earlier is not None
    assert earlier.cells["H1", "bf16_pure"].evidence == evidence


def test_differences_name_what_differs() -> None:
    before, now = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 3}
    assert list(differences(before, now)) == [
        ("a.c", "[1]", "[2]"),
        ("d", "2", "null"),
        ("e", "null", "3"),
    ]
    assert not list(differences(before, before))


def test_a_study_takes_a_cell_for_its_own_formats_alone(models: Pipeline, small: Budget) -> None:
    job = MainJob(models, small, Recorder(Path("unwritten.json"), CONFIGURATIONS))
    pure, alike, promoted = map(
        get_configuration, ("bf16_pure", "bf16_fp32_kl", "bf16_fp32_reward")
    )
    marked = Cell("H2", "bf16_pure", "impaired", {}, H2Evidence(more={"taken": True}))
    job.study("H2").take(pure, marked)
    assert job.study("H2").cell(pure) == marked
    assert job.study("H2").cell(alike) == replace(marked, configuration="bf16_fp32_kl")
    assert "taken" not in job.study("H2").cell(promoted).evidence.more
