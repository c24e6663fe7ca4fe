"""``precision-forensics recommend`` as a user meets it: answers, exit codes, files, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precision_lib import cli
from precision_lib.forensics.evidence import H5Evidence
from precision_lib.matrix import MATRIX
from precision_lib.record.context import Model
from precision_lib.record.files import write_record
from precision_lib.record.record import Record
from tests.unit.recipes import made_records as made

CHEAP, FP32 = "bf16_pure", "fp32_baseline"


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where matplotlib is not installed; drawing takes most of the time of an answer."""
    monkeypatch.setattr("precision_lib.phases.recommend.find_spec", lambda _: None)


def ask(
    tmp_path: Path, record: Record, *options: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, dict[str, Any]]:
    """(exit code, what was shown, the JSON answer)."""
    write_record(tmp_path / "record.json", record)
    out = tmp_path / "out"
    given = ("--record", str(tmp_path / "record.json"), "--output_dir", str(out))
    code = cli.main(("recommend", *given, "--length", str(made.LENGTH), *options))
    return code, capsys.readouterr().out, json.loads((out / "recommendation.json").read_text())


def test_the_recommended_recipe_comes_with_cost_settings_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made.made_record({CHEAP: {"H1": made.IMPAIRED}, "fp16_fp32_kl": {}, FP32: {}})
    code, shown, answer = ask(tmp_path, record, capsys=capsys)
    assert code == 0
    assert answer["verdict"] == "recommended"
    assert answer["recommended"] == "fp16_fp32_kl"
    assert "The cheapest recipe that is healthy everywhere is fp16_fp32_kl" in shown
    assert "embedded, not yours" in shown
    assert "H3: does not apply, grpo has no critic" in shown
    assert "condition: Loss scaling" in shown
    assert "trl vllm-serve --dtype float16" in shown
    assert "NOT POSSIBLE, rollout" in shown
    assert set(answer["settings"]) == {"trl", "verl", "openrlhf", "slime"}
    written = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert written == {".json", ".md", ".png", ".svg"}
    assert "| >* fp16_fp32_kl |" in (tmp_path / "out" / "recommendation.md").read_text()


@pytest.mark.usefixtures("no_picture")
def test_exit_code_1_where_all_are_impaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made.made_record({CHEAP: {}, FP32: {}}, otherwise=made.IMPAIRED)
    code, shown, answer = ask(tmp_path, record, capsys=capsys)
    assert code == 1
    assert answer["verdict"] == "none healthy"
    assert answer["recommended"] is None
    assert not answer["settings"]
    assert "none is recommended. In the way: H1 KL collapse, in all 2 recipes" in shown


@pytest.mark.usefixtures("no_picture")
def test_exit_code_2_where_all_are_undecided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made.made_record({CHEAP: {}, FP32: {}}, otherwise=made.UNDECIDED)
    code, shown, answer = ask(tmp_path, record, capsys=capsys)
    assert code == 2
    assert answer["verdict"] == "inconclusive"
    assert answer["recommended"] is None
    assert answer["cheaper_undecided"] == [CHEAP, FP32]
    assert "A larger budget (--whole) may decide" in shown
    assert "no picture: the extra report draws it" in shown


@pytest.mark.usefixtures("no_picture")
def test_a_larger_budget_is_no_answer_to_a_cell_that_the_record_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made.made_record({FP32: {}})
    without = replace(record, cells=tuple(c for c in record.cells if c.hypothesis != "H2"))
    code, shown, _ = ask(tmp_path, without, capsys=capsys)
    assert code == 2
    assert "H2 not measured" in shown
    assert "--whole" not in shown
    assert "A record of this release, which measures every cell, decides" in shown


@pytest.mark.usefixtures("no_picture")
def test_what_was_measured_at_another_length_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made.made_record({FP32: {}})
    _, shown, answer = ask(tmp_path, record, "--length", "400", capsys=capsys)
    damage = answer["recipes"][0]["damage"]["H5"]
    assert damage["basis"] == "extrapolated"
    assert damage["measured_at"] == "100 response tokens"
    assert damage["value"] == pytest.approx(2 * made.HEALTHY)
    assert "H5: extrapolated (~) from 100 response tokens" in shown
    assert "~0.020 healthy" in shown


@pytest.mark.usefixtures("no_picture")
def test_an_interval_without_an_end_is_written_as_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made.made_record({FP32: {}})
    cells = [
        replace(c, evidence=replace(c.shows(H5Evidence), rms_growth_exponent=None))
        if c.hypothesis == "H5"
        else c
        for c in record.cells
    ]
    unknown = replace(record, cells=tuple(cells))
    code, shown, answer = ask(tmp_path, unknown, "--length", "400", capsys=capsys)
    assert code == 2
    assert answer["recipes"][0]["damage"]["H5"]["high"] is None
    assert "unbounded], limit 0.32, extrapolated" in shown


@pytest.mark.usefixtures("no_picture")
def test_the_cost_of_another_model_is_said_to_be_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made.made_record({FP32: {}})
    elsewhere = replace(record, context=replace(record.context, checkpoint=Model("mine")))
    code, shown, _ = ask(tmp_path, elsewhere, "--model", "embedded", capsys=capsys)
    assert code == 0
    assert "measured on mine, the cost is that of embedded" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--algorithm", "gspo"), "algorithm 'gspo' is unknown; known: ppo"),
        (("--length", "0"), "has at least 1 token"),
        (("--kl", "0"), "give a KL above 0"),
        (("--hardware", "tpu"), "unknown; known: h100"),
        (("--record", "missing.json", "--whole"), "--whole says how to measure"),
        (("--json", "."), "is a directory"),
        (("--record", "missing.json"), "missing.json"),
        (("--model", "no-such-directory"), "give a causal LM with --model"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_measured(
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(("recommend", *options, "--output_dir", str(tmp_path))) == 4
    assert message in capsys.readouterr().err


def test_a_record_with_a_planted_fault_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = replace(made.made_record({FP32: {}}), planted_fault="k3_as_textbook")
    write_record(tmp_path / "record.json", record)
    given = ("--record", str(tmp_path / "record.json"), "--output_dir", str(tmp_path))
    assert cli.main(("recommend", *given)) == 4
    assert "planted fault k3_as_textbook" in capsys.readouterr().err


@pytest.mark.usefixtures("no_picture")
def test_without_a_record_the_recipes_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main job has tests of its own; here, what it is asked and that its record is used."""
    asked: dict[str, Any] = {}

    def measured(pipeline: Any, budget: Any, configurations: Any, path: Path, **kw: Any) -> Record:
        asked.update(kw, names=[c.name for c in configurations], seed=budget.seed, path=path)
        return made.made_record({FP32: {}})

    monkeypatch.setattr("precision_lib.phases.recommend.measure_recipes", measured)
    given = ("--output_dir", str(tmp_path), "--seed", "3", "--length", str(made.LENGTH))
    assert cli.main(("recommend", *given)) == 0
    assert asked["budget_name"] == "quick"
    assert asked["seed"] == 3
    assert {*(c.name for c in MATRIX), "fp16_fp32_kl"} <= set(asked["names"])
    assert f"--record {asked['path']}" in capsys.readouterr().out
