"""Pictures of a sweep: the curves that are drawn, who is told from whom, the files, the command."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from precision_lib import cli
from precision_lib.exit_codes import OK, USAGE
from precision_lib.record.files import load_sweep
from precision_lib.record.sweep import Run, Sweep
from precision_lib.reporting.plots.appearance import BASELINE, appearance, rendered
from precision_lib.reporting.plots.picture import NothingToDrawError
from precision_lib.reporting.plots.training import CURVES, SMOOTH, band, pictures
from tools import tables

ROOT = Path(__file__).parents[3]
RECORD = ROOT / "docs" / "records" / "sweep" / "sweep.json"


@pytest.fixture(scope="module")
def whole() -> Sweep:
    return load_sweep(RECORD)


def run_of(curve: Sequence[float | None]) -> Run:
    return Run("a", 0, "completed", curves={"reward_mean": tuple(curve)})


def test_band_goes_from_the_lowest_seed_to_the_highest_over_the_steps_of_all() -> None:
    step, mean, low, high = band([run_of([1.0] * 5), run_of([3.0] * 4)], "reward_mean")
    assert step.tolist() == [1, 2, 3, 4]
    assert (mean.tolist(), low.tolist(), high.tolist()) == ([2.0] * 4, [1.0] * 4, [3.0] * 4)


def test_curve_is_averaged_over_the_steps_before_and_skips_what_has_no_value() -> None:
    curve = [float(i) for i in range(2 * SMOOTH)]
    mean = band([run_of(curve)], "reward_mean")[1]
    assert mean[-1] == np.mean(curve[-SMOOTH:])
    assert mean[0] == 0
    gap = band([run_of([None, 2.0, float("nan"), 4.0])], "reward_mean")[1]
    assert np.isnan(gap[0])
    assert gap[1:].tolist() == [2.0, 2.0, 3.0]


def test_no_two_configurations_look_the_same() -> None:
    names = [BASELINE, "fp32_twin", *(f"other_{i}" for i in range(12))]
    looks = [(look["color"], look["linestyle"]) for look in appearance(names).values()]
    assert len(set(looks)) == len(names)
    assert appearance(names)[BASELINE]["color"] == "black"


def test_pictures_hold_what_they_show(whole: Sweep) -> None:
    drawn = pictures(whole)
    assert [p.name for p in drawn] == ["ppo_curves", "ppo_gain_lost"]
    files = [rendered(p.figure) for p in drawn]
    assert all(f["png"][:4] == b"\x89PNG" for f in files)
    curves, lost = (f["svg"].decode() for f in files)
    for text in (*(label for _, label in CURVES), BASELINE, "bf16_pure"):
        assert text in curves
    assert "6 seeds" in drawn[0].caption
    assert whole.evidence is not None
    for cell in whole.evidence.cells:
        assert f"{cell.configuration}: {cell.verdict}" in lost
        assert cell.configuration in [row[0] for row in drawn[1].table.rows]


def test_a_sweep_without_evidence_has_curves_and_one_without_runs_has_nothing(
    whole: Sweep,
) -> None:
    unweighed = replace(whole, evidence=None)
    assert [p.name for p in pictures(unweighed)] == ["ppo_curves"]
    nothing = replace(whole, runs=(Run("a", 0, "x"),))
    with pytest.raises(NothingToDrawError, match="nothing to draw yet"):
        pictures(nothing)


def test_analyze_draws_and_a_tool_fills_a_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "a.md"
    document.write_text("<!-- training: begin -->\n<!-- training: end -->\n", encoding="utf-8")
    given = ["analyze", "--results_dir", str(RECORD.parent), "--output_dir", str(tmp_path / "p")]
    assert cli.main(given) == OK
    assert tables.main(["training", str(RECORD), "--into", str(document)]) == OK
    files = capsys.readouterr().out.split()
    names = [f"{s}.{k}" for s in ("ppo_curves", "ppo_gain_lost") for k in ("png", "svg")]
    assert [Path(f).name for f in files] == [*names, "index.html"]
    assert "bf16_pure" in document.read_text(encoding="utf-8")
    assert cli.main(["analyze", "--results_dir", str(tmp_path)]) == USAGE
    assert "sweep.json" in capsys.readouterr().err
    (tmp_path / "sweep.json").write_text('{"schema": "other"}', encoding="utf-8")
    assert cli.main(["analyze", "--results_dir", str(tmp_path)]) == USAGE
    assert "is no sweep of this suite" in capsys.readouterr().err
