"""The record is strict, whole, and refuses what is not one."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell, HypothesisVerdict
from precision_lib.jsonio import append_line, to_plain, write_json
from precision_lib.matrix import MATRIX
from precision_lib.records.context import run_context
from precision_lib.records.record import (
    SCHEMA,
    Recorder,
    RecordError,
    load_cells,
    load_record,
)

EVIDENCE = {"true_kl": 1e-4, "observed_formats": {"policy": "bf16", "reward": None}}
METRIC = Metric(0.5, 0.4, 0.6, 100, "RMS error / RMS signal")


def cell(configuration: str = "bf16_pure") -> Cell:
    return Cell("H1", configuration, "impaired", {"log_ratio_nsr": METRIC}, EVIDENCE)


def recorder(tmp_path: Path) -> Recorder:
    r = Recorder(tmp_path / "report.json", MATRIX)
    r.expected = [("H1", "bf16_pure"), ("H1", "fp32_baseline")]
    return r


def test_a_written_record_reads_back(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    r.add_cell(cell())
    r.add_cell(cell("fp32_baseline"))
    control = {"is_null": True}
    r.add_hypothesis(HypothesisVerdict("H1", "refuted", METRIC, control, "because", {"a": METRIC}))
    record = load_record(r.write({"exitcode": 0}))
    block = record["precision"]
    assert record["exitcode"] == 0
    assert block["schema"] == SCHEMA
    assert block["complete"]
    assert block["cells"][0]["metrics"]["log_ratio_nsr"] == METRIC.as_json()
    assert block["hypotheses"][0]["effect"] == METRIC.value
    assert block["matrix"]["bf16_pure"]["kl"] == "bf16"
    assert block["context"]["observed_formats"]["bf16_pure"] == {"policy": "bf16"}
    assert load_cells(r.cells_path, r.run) == [
        {"run": r.run, "planted_fault": None, **c} for c in block["cells"]
    ]


def test_a_run_that_lacks_a_cell_is_incomplete(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    assert not r.block()["complete"]
    r.add_cell(cell())
    assert not r.block()["complete"]
    r.expected = []
    assert not r.block()["complete"], "a run that set out to measure nothing is not complete"


def test_the_same_cell_twice_is_kept_once(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    r.add_cell(cell())
    r.add_cell(cell())
    assert len(r.cells) == len(load_cells(r.cells_path)) == 1


def test_cells_of_an_earlier_run_stay_and_are_not_mixed_in(tmp_path: Path) -> None:
    first, second = recorder(tmp_path), recorder(tmp_path)
    first.add_cell(cell("bf16_pure"))
    second.add_cell(cell("fp32_baseline"))
    assert [c["configuration"] for c in load_cells(first.cells_path)] == ["fp32_baseline"]
    assert [c["configuration"] for c in load_cells(first.cells_path, first.run)] == ["bf16_pure"]


def test_finished_cells_survive_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from precision_lib.records.record import Recorder\n"
        "from precision_lib.forensics.verdicts import Cell\n"
        "r = Recorder(Path(sys.argv[1]) / 'report.json', ())\n"
        "r.add_cell(Cell('H1', 'bf16_pure', 'impaired', {}, {}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [c["configuration"] for c in load_cells(tmp_path / "cells.jsonl")] == ["bf16_pure"]
    with pytest.raises(RecordError, match="does not exist"):
        load_record(tmp_path / "report.json")


def test_a_line_torn_by_a_kill_spoils_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    append_line(path, {"run": "a", "configuration": "bf16_pure"})
    with path.open("a") as file:
        file.write('{"run": "a", "configura')
    assert len(load_cells(path)) == 1
    append_line(path, {"run": "b", "configuration": "fp32_baseline"})
    assert [c["configuration"] for c in load_cells(path)] == ["fp32_baseline"]
    assert [c["configuration"] for c in load_cells(path, "a")] == ["bf16_pure"]


@pytest.mark.parametrize("line", ["5", '{"configuration": "bf16_pure"}'])
def test_a_whole_line_that_is_no_cell_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RecordError, match=r"cells.jsonl, line 1 is not a cell"):
        load_cells(path)


#: A record of schema 1 with one cell.
OLD = (
    '{"precision": {"schema": 1, "run": "a", "context": {}, "matrix": {}, "hypotheses": [], '
    '"cells": [%s]}}'
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"precision": {"schema": 1, "run', r"is truncated or not strict JSON .*cells.jsonl"),
        ('{"precision": {"schema": NaN}}', r"NaN is not strict JSON"),
        ('{"tests": []}', r"is not a record of this suite: it has no 'precision' block"),
        ("[1, 2]", r"is not a record of this suite"),
        (f'{{"precision": {{"schema": {SCHEMA + 1}}}}}', r"this version reads up to 2; upgrade"),
        ('{"precision": {"schema": 1}}', r"is damaged: its precision block lacks 'run'"),
        (OLD % '{"configuration": "bf16_pure"}', r"is damaged \(KeyError\('hypothesis'\)\)"),
    ],
)
def test_what_is_not_a_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        load_record(path)


def test_values_become_plain_and_strict(tmp_path: Path) -> None:
    value = {
        "np": np.float64(2.5),
        "torch": torch.tensor(3, dtype=torch.int32),
        "nan": math.nan,
        "inf": -math.inf,
        1: (Path("a"), None, True),
        "dtype": torch.bfloat16,
    }
    path = tmp_path / "deep" / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "np": 2.5,
        "torch": 3,
        "nan": "nan",
        "inf": "-inf",
        "1": ["a", None, True],
        "dtype": "torch.bfloat16",
    }
    assert to_plain(0.1 + 0.2) == 0.1 + 0.2  # all 17 digits


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    path = tmp_path / "report.json"
    write_json(path, {"good": 1})
    with pytest.raises(RuntimeError, match="no text"):
        write_json(path, {"bad": Unprintable()})
    assert json.loads(path.read_text()) == {"good": 1}
    assert os.listdir(tmp_path) == ["report.json"]  # noqa: PTH208


def test_context_is_read_from_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9.9+cu999")  # the metadata lack the build
    context = run_context("cpu", seed=7)
    assert context["seed"] == 7
    assert context["versions"]["torch"] == "9.9.9+cu999"
    assert context["device"]["class"] == "cpu"
    assert context["threads"] == torch.get_num_threads()
    assert context["settings"]["deterministic_algorithms"] == "(True, False)"
    assert context["cpu"]["cores"] == os.cpu_count()


def test_context_names_what_overrides_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set or null, and torch's version with its build, which the metadata may lack."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.delenv("CUBLAS_EMULATE_SINGLE_PRECISION", raising=False)
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    context = run_context("cpu", seed=0)
    assert context["overrides"]["NVIDIA_TF32_OVERRIDE"] == "1"
    assert context["overrides"]["CUBLAS_EMULATE_SINGLE_PRECISION"] is None
    assert context["versions"]["torch"] == "2.11.0+cu130"
