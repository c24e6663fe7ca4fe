"""Records and baselines of schema 1 are read as if this version had written them."""

import json
from pathlib import Path
from typing import Any

import pytest

from precision_lib import cli
from precision_lib.compare import gate
from precision_lib.compare.baseline import load_baseline
from precision_lib.record.files import load_record
from tests.unit import small_blocks as small
from tests.unit.small_blocks import metric

ROOT = Path(__file__).parents[3]
RELEASE_0_1 = Path(__file__).with_name("release_0_1.json")
TODAY = ROOT / "docs" / "records" / "cpu.json"


def first_schema(block: dict[str, Any]) -> dict[str, Any]:
    """The block as schema 1 held it: an own noise floor per cell, no batch variance."""
    block["schema"], block["noise_floors"] = 1, {}
    for cell in block["cells"]:
        own = cell["metrics"].pop("batch_variance")
        cell["evidence"]["noise_floor"] = own
        floors = block["noise_floors"].setdefault(cell["hypothesis"], {})
        floors[cell["configuration"]] = own
    return block


def old_block() -> dict[str, Any]:
    cells = [
        small.cell("H1", name)
        | {"metrics": small.typical("H1") | {"batch_variance": metric(variance)}}
        for name, variance in (("bf16_pure", 0.25), ("fp32_baseline", 0.125))
    ]
    return first_schema(small.block(*cells))


def test_a_record_gets_its_batch_variance_and_its_golden_floor(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"precision": old_block()}))
    record = load_record(path)
    pure, _ = record.cells
    assert pure.metrics["batch_variance"].value == pure.evidence.batch_shift == 0.25
    assert record.golden_floors("H1") == [0.125, 0.125]


def test_a_record_of_before_is_green_against_its_own_baseline_of_before(tmp_path: Path) -> None:
    record, baseline = tmp_path / "report.json", tmp_path / "cpu.json"
    record.write_text(json.dumps({"precision": old_block()}))
    old = small.known(old_block()) | {"schema": 1}
    for cell in old["cells"]["H1"].values():
        cell.pop("batch_shift", None)
    baseline.write_text(json.dumps(old))
    judgement = gate.judge(load_record(record), load_baseline(baseline))
    assert (judgement.exit_code, judgement.inconclusive) == (0, ())
    assert load_baseline(baseline).cells["H1"]["bf16_pure"].batch_shift is not None


def test_a_record_of_release_0_1_is_compared_with_todays_and_judged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It holds three configurations of release 0.1, the same in both."""
    assert cli.main(["gate", "--compare", str(RELEASE_0_1), str(TODAY)]) == 0
    assert "verdicts\nthe same in both" in capsys.readouterr().out
    baseline = str(ROOT / "baselines" / "cpu.json")
    assert cli.main(["gate", str(RELEASE_0_1), f"--baseline={baseline}"]) == 2
    assert "incomplete: 36 cells were not measured" in capsys.readouterr().out
