"""The recipes measured on random models: the record that a recommendation is made from."""

from pathlib import Path

import pytest

from precision_lib.forensics.h2 import families
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.matrix import get_configuration
from precision_lib.phases.recommend import measure_recipes
from precision_lib.recipes.answer import answer, as_json
from precision_lib.recipes.tables import operating_point
from precision_lib.record.files import load_record
from tests.unit.phases.test_main_job import small_budget
from tests.unit.recipes.made_records import SHAPE
from tests.unit.small_pipelines import random_pipeline


def test_what_was_measured_is_written_and_answered_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "GROUPS", 64)
    configurations = [get_configuration(name) for name in ("bf16_pure", "fp16_fp32_kl")]
    path = tmp_path / "report.json"
    measured = measure_recipes(
        random_pipeline(), small_budget(), configurations, path, budget_name="small"
    )
    assert measured.complete
    assert len(measured.cells) == 2 * len(HYPOTHESES)
    assert "measuring 2 recipes: about" in capsys.readouterr().err
    point = operating_point("ppo", 2048, 3e-4)
    answers = [answer(r, SHAPE, point, "h100", "time") for r in (measured, load_record(path))]
    assert as_json(answers[0]) == as_json(answers[1])
    carried = [d.carried for r in answers[0].choice.recipes for d in r.damages]
    assert all(c is not None for c in carried)
