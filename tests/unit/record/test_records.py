"""The record is strict, whole, and refuses what is not one."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from precision_lib.forensics.evidence import CurvePoint, H1Evidence
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.verdicts import Cell, Control, HypothesisVerdict
from precision_lib.jsonio import append_line, to_plain, write_json
from precision_lib.matrix import MATRIX
from precision_lib.record.codec import ShapeError, decode, encode
from precision_lib.record.context import run_context
from precision_lib.record.files import SCHEMAS, RecordError, load_record, write_record
from precision_lib.record.recorder import Recorder, load_cells
from precision_lib.record.sharing import complete

RECORDS = Path(__file__).parents[3] / "docs" / "records"
#: The cells of three configurations of a run of release 0.1.
RELEASE_0_1 = Path(__file__).with_name("release_0_1.json")
EVIDENCE = H1Evidence(true_kl=1e-4, observed_formats={"policy": "bf16", "reward": None})
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
    effect = METRIC.value, METRIC.unit, METRIC.low, METRIC.high
    said = Control(is_null=True), "because", {"a": METRIC}
    r.add_hypothesis(HypothesisVerdict("H1", "refuted", *effect, *said))
    path = r.write({"exitcode": 0})
    assert load_record(path) == r.record()
    content = json.loads(path.read_text())
    block = content["precision"]
    assert content["exitcode"] == 0
    assert block["schema"] == SCHEMAS["record"]
    assert block["complete"]
    assert block["cells"][0]["metrics"]["log_ratio_nsr"] == encode(METRIC)
    assert block["hypotheses"][0]["effect"] == METRIC.value
    assert block["matrix"]["bf16_pure"]["kl"] == "bf16"
    assert block["context"]["observed_formats"]["bf16_pure"] == {"policy": "bf16"}
    assert load_cells(r.cells_path, r.run) == list(r.cells.values())


def test_evidence_that_cells_share_is_written_once(tmp_path: Path) -> None:
    """Two cells that hold the same curve, and one that holds another."""
    r = recorder(tmp_path)
    curves = {name: (CurvePoint(x, x, {"a": METRIC}),) for name, x in SHARED}
    for name, curve in curves.items():
        r.add_cell(replace(cell(name), evidence=replace(EVIDENCE, curve=curve)))
    path = r.write()
    first, same, other = json.loads(path.read_text())["precision"]["cells"]
    assert "as_in" not in first
    assert "curve" in first["evidence"]
    assert same["as_in"] == {"bf16_pure": ["curve"]}
    assert "curve" not in same["evidence"]
    assert "as_in" not in other
    assert load_record(path) == r.record()


def test_what_the_cells_own_metric_says_is_left_out_of_its_evidence(tmp_path: Path) -> None:
    """At the operating point all of a metric; elsewhere its unit and count."""
    r = recorder(tmp_path)
    elsewhere = replace(METRIC, value=0.125, low=-math.inf)
    points = tuple(
        CurvePoint(x, x, {"log_ratio_nsr": m}) for x, m in enumerate((METRIC, elsewhere))
    )
    r.add_cell(replace(cell(), evidence=replace(EVIDENCE, curve=points)))
    path = r.write()
    [written] = json.loads(path.read_text())["precision"]["cells"]
    here, there = (point["log_ratio_nsr"] for point in written["evidence"]["curve"])
    assert (here, there) == ({}, [0.125, "-inf"])
    assert load_record(path) == r.record()
    in_schema_4 = path.read_text().replace('[0.125, "-inf"]', '{"value": 0.125, "low": "-inf"}')
    path.write_text(in_schema_4.replace(SCHEMAS["record"], "precision-forensics/record/4"))
    assert load_record(path) == r.record()


@pytest.mark.parametrize("no_metric", [{}, [0.125, 0.25], {"high": 0.25}])
def test_evidence_that_would_not_come_back_is_written_in_full(
    no_metric: object, tmp_path: Path
) -> None:
    """What looks like a metric of which something is left out, and is none."""
    r = recorder(tmp_path)
    more = {"mine": {"log_ratio_nsr": no_metric}}
    r.add_cell(replace(cell(), evidence=replace(EVIDENCE, more=more)))
    path = r.write()
    [written] = json.loads(path.read_text())["precision"]["cells"]
    assert written["evidence_in_full"]
    assert load_record(path) == r.record()
    assert r.record().cells[0].evidence.more["mine"] == {"log_ratio_nsr": no_metric}


#: Configuration to the KL of its curve.
SHARED = (("bf16_pure", 0.25), ("bf16_fp32_value", 0.25), ("fp32_baseline", 0.5))


FRAMEWORKS = sorted((RECORDS / "frameworks").glob("*.json"))


@pytest.mark.parametrize("source", [RELEASE_0_1, *FRAMEWORKS], ids=lambda path: path.stem)
def test_a_record_of_before_comes_back_with_every_figure(source: Path, tmp_path: Path) -> None:
    """What release 0.1 wrote, the cells of three configurations: every verdict and metric."""
    path = tmp_path / "report.json"
    before = json.loads(source.read_text())
    record = load_record(source)
    write_record(path, record, {k: v for k, v in before.items() if k != "precision"})
    assert load_record(path) == record
    after = json.loads(path.read_text())["precision"]
    complete(after["cells"])
    for old, new in zip(before["precision"]["cells"], after["cells"], strict=True):
        assert new["verdict"] == old["verdict"]
        assert old["metrics"].items() <= new["metrics"].items()
        shared = {n for names in new.get("as_in", {}).values() for n in names}
        measured = {n for n, value in old["evidence"].items() if value is not None}
        assert set(new["evidence"]) | shared == (measured - {"noise_floor"}) | NEW
        kept = (n for n in old["evidence"] if n in new["evidence"])
        assert all(new["evidence"][n] == old["evidence"][n] for n in kept)


#: Evidence that the second schema added.
NEW = {"golden_floor", "batch_shift"}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Metric, {"value": "x", "low": 0, "high": 1, "n": 1, "unit": ""}, "value is 'x', not a n"),
        (Metric, {"value": 0, "low": 0, "high": 1, "n": 1.5, "unit": ""}, "n is '1.5', not a who"),
        (Metric, {"value": 0, "low": 0, "high": 1, "unit": ""}, "Metric lacks 'n'"),
        (Metric, encode(METRIC) | {"typo": 1}, "Metric has the unknown key 'typo'"),
        (Metric, [1], r"is '\[1\]', not Metric"),
    ],
)
def test_what_does_not_fit_a_type_is_named(kind: type, value: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        decode(kind, value)


def test_figures_that_are_not_finite_come_back() -> None:
    metric = Metric(math.inf, -math.inf, math.inf, 1, "x")
    plain = encode(metric)
    assert (plain["value"], plain["low"]) == ("inf", "-inf")
    assert decode(Metric, plain) == metric


def test_a_run_that_lacks_a_cell_is_incomplete(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    assert not r.record().complete
    r.add_cell(cell())
    assert not r.record().complete
    r.expected = []
    assert not r.record().complete, "a run that set out to measure nothing is not complete"


def test_the_same_cell_twice_is_kept_once(tmp_path: Path) -> None:
    r = recorder(tmp_path)
    r.add_cell(cell())
    r.add_cell(cell())
    assert len(r.cells) == len(load_cells(r.cells_path)) == 1


def test_cells_of_an_earlier_run_stay_and_are_not_mixed_in(tmp_path: Path) -> None:
    first, second = recorder(tmp_path), recorder(tmp_path)
    first.add_cell(cell("bf16_pure"))
    second.add_cell(cell("fp32_baseline"))
    assert [c.configuration for c in load_cells(first.cells_path)] == ["fp32_baseline"]
    assert [c.configuration for c in load_cells(first.cells_path, first.run)] == ["bf16_pure"]


def test_finished_cells_survive_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from precision_lib.record.recorder import Recorder\n"
        "from precision_lib.forensics.evidence import H1Evidence\n"
        "from precision_lib.forensics.verdicts import Cell\n"
        "r = Recorder(Path(sys.argv[1]) / 'report.json', ())\n"
        "r.add_cell(Cell('H1', 'bf16_pure', 'impaired', {}, H1Evidence()))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [c.configuration for c in load_cells(tmp_path / "cells.jsonl")] == ["bf16_pure"]
    with pytest.raises(RecordError, match="does not exist"):
        load_record(tmp_path / "report.json")


def test_a_line_torn_by_a_kill_spoils_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    append_line(path, {"run": "a", **encode(cell("bf16_pure"))})
    with path.open("a") as file:
        file.write('{"run": "a", "configura')
    assert len(load_cells(path)) == 1
    append_line(path, {"run": "b", **encode(cell("fp32_baseline"))})
    assert [c.configuration for c in load_cells(path)] == ["fp32_baseline"]
    assert [c.configuration for c in load_cells(path, "a")] == ["bf16_pure"]


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
        ('{"precision": {"schema": 6}}', r"this version reads .*record/1 to 5; upgrade"),
        ('{"precision": {"schema": 1}}', r"is damaged: KeyError\('cells'\)"),
        (OLD % '{"configuration": "bf16_pure"}', r"is damaged: KeyError\('hypothesis'\)"),
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
