"""Ways in which a broken run looked green, each found by somebody who tried to pass the gate.

The hazard. A gate is asked whether metrics are worse; a run that makes its metrics incomparable,
its interval wide, its noise loud or its tests absent is not worse.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from precision_lib.compare.baseline import BaselineError, load_baseline, write_baseline
from precision_lib.phases import calibrate
from precision_lib.record.self_test import Calibration
from tests.unit import small_blocks as small
from tests.unit.small_blocks import judge, known, metric, moved, whole
from tests.unit.suite_runs import ROOT, run_suite


@pytest.mark.parametrize(
    "broken",
    [
        metric(0.5) | {"value": "nan"},
        metric(0.5) | {"value": math.nan},
        metric(0.5) | {"high": math.inf},
    ],
    ids=["nan as text", "nan", "infinite interval"],
)
@pytest.mark.parametrize(
    ("hypothesis", "name"), [("H1", "k3_negative_frac"), ("H2", "advantage_rms_error")]
)
def test_what_is_not_a_number_is_a_regression(
    hypothesis: str, name: str, broken: dict[str, Any]
) -> None:
    found = judge(moved(whole(), hypothesis, name, broken), known(whole()))
    [change] = found.worse
    assert found.exit_code == 1
    assert f"{name} " in change.message
    assert "-> not finite" in change.message


def test_a_run_that_raises_its_own_batch_variance_has_regressed() -> None:
    """And the variance hides nothing else: here an error that tripled."""
    quiet = moved(whole(), "H1", "batch_variance", metric(0.0))
    loud = moved(whole(), "H1", "batch_variance", metric(0.3))
    [change] = judge(loud, known(quiet)).worse
    assert (change.metric, change.before, change.after) == ("batch_variance", 0.0, 0.3)
    tripled = moved(loud, "H1", "log_ratio_nsr", metric(1.5, 0.05))
    names = {c.metric for c in judge(tripled, known(quiet)).worse}
    assert names == {"batch_variance", "log_ratio_nsr"}
    assert judge(quiet, known(quiet)).exit_code == 0


def test_a_metric_that_cannot_turn_red_is_named_and_not_counted() -> None:
    share = metric(0.9, 0.1) | {"unit": "share of tokens"}
    wide = moved(whole(), "H1", "log_ratio_near_zero_frac", share)
    found = judge(wide, known(wide))
    assert found.blind == ("H1 bf16_pure log_ratio_near_zero_frac",)
    assert found.compared == judge(whole(), known(whole())).compared - 1
    assert judge(whole(), known(whole())).blind == ()


@pytest.mark.parametrize("key", ["budget", "checkpoint", "reward_model", "trajectories"])
def test_a_run_that_does_not_say_its_settings_is_inconclusive(key: str) -> None:
    silent = whole()
    del silent["context"][key]
    found = judge(silent, known(whole()))
    assert found.exit_code == 2
    assert f"this run does not say its {key}" in found.inconclusive[-1]


def test_a_run_that_does_not_say_what_it_set_out_to_measure_is_inconclusive() -> None:
    found = judge(whole(expected=[]), known(whole()))
    assert found.exit_code == 2
    assert "does not say which cells" in found.inconclusive[0]


def test_a_component_that_ran_as_nobody_asked_is_inconclusive() -> None:
    seen = small.cell("H1", "bf16_pure", observed={"policy": "fp32"})
    found = judge(small.block(seen), known(small.block(seen)))
    assert found.inconclusive == (
        "not as configured: the policy of bf16_pure ran in fp32, the matrix says bf16",
    )


def test_formats_that_are_not_observed_any_more_are_named() -> None:
    seen = small.cell("H1", "bf16_pure", observed={"policy": "bf16"})
    found = judge(small.block(small.cell("H1", "bf16_pure")), known(small.block(seen)))
    assert found.inconclusive == ("formats that were not observed: bf16_pure policy",)


def test_a_core_that_was_fed_half_as_much_is_inconclusive() -> None:
    few = small.core(whiten=small.counts() | {"inputs": 4}, gae=small.counts(worst=0.9))
    assert "on 4 inputs" in judge(whole(conformance=few), known(whole())).inconclusive[0]
    enough = small.core(whiten=small.counts() | {"inputs": 5}, gae=small.counts(worst=0.9))
    assert judge(whole(conformance=enough), known(whole())).exit_code == 0
    other = small.core(whiten=small.counts(), gae=small.counts()) | {"profile": "explore"}
    assert judge(whole(conformance=other), known(whole())).inconclusive == (
        "other examples: the baseline's profile is ci, here explore",
    )


@pytest.mark.parametrize(
    "damage",
    [{"high": "inf"}, {"value": "0.5"}, {"low": 2.0}, {"n": 0}],
    ids=["not finite", "text", "upside down", "of nothing"],
)
def test_a_baseline_whose_figures_are_damaged_is_refused(
    tmp_path: Path, damage: dict[str, Any]
) -> None:
    baseline = known(whole())
    baseline["cells"]["H1"]["bf16_pure"]["metrics"]["log_ratio_nsr"] |= damage
    (tmp_path / "b.json").write_text(json.dumps({"schema": 2} | baseline))
    with pytest.raises(BaselineError, match=r"is damaged .*make it again"):
        load_baseline(tmp_path / "b.json")


@pytest.mark.parametrize("change", [{"cells": []}, {"conformance": {"functions": {"gae": {}}}}])
def test_a_baseline_of_another_shape_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "b.json").write_text(json.dumps({"schema": 2} | known(whole()) | change))
    with pytest.raises(BaselineError, match="is damaged"):
        load_baseline(tmp_path / "b.json")


def test_a_run_in_which_everything_was_skipped_is_not_green(tmp_path: Path) -> None:
    plugin = "import pytest\n\ndef pytest_runtest_setup(item):\n    pytest.skip('all of it')\n"
    (tmp_path / "skips_all.py").write_text(plugin)
    done = run_suite(
        *("tests/forensics/test_h1_kl_collapse.py", "-q", "-p", "skips_all", "--quick"),
        *(f"--baseline={ROOT / 'baselines' / 'cpu.json'}", "--json-report-file=r.json"),
        cwd=tmp_path,
    )
    assert " skipped" in done.stdout
    assert " passed" not in done.stdout
    assert done.returncode == 2, done.stdout + done.stderr


def calibrated(monkeypatch: pytest.MonkeyPatch, *values: float) -> Calibration:
    """A calibration whose runs measured these noise-to-signal ratios, the first with one thread."""
    return of_runs(
        monkeypatch, [moved(whole(), "H1", "log_ratio_nsr", metric(v, 0.05)) for v in values]
    )


def of_runs(monkeypatch: pytest.MonkeyPatch, runs: list[dict[str, Any]]) -> Calibration:
    """A calibration of these runs."""
    for run in runs:
        run["context"]["threads"] = 1
        for cell in run["cells"]:
            cell["evidence"]["batch_shift"] = 0.0
    left = iter(runs)
    monkeypatch.setattr(calibrate, "_run", lambda *_: small.record(next(left)))
    policy = SimpleNamespace(model=SimpleNamespace(device=torch.device("cpu")))
    return calibrate.calibrate(SimpleNamespace(policy=policy))  # type: ignore[arg-type]


def test_the_noise_floor_is_the_largest_difference_between_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    floors = calibrated(monkeypatch, 0.5, 0.5, 0.53, 0.49, 0.5).floors["H1"]
    assert floors["bf16_pure"]["log_ratio_nsr"] == pytest.approx(0.03, rel=2**-48)
    assert floors["fp32_bf16_kl"]["log_ratio_nsr"] == 0


def test_a_metric_that_another_run_does_not_reach_has_no_difference_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Near one half, another batch shape decides whether there is a critical magnitude."""
    name = "value_critical_magnitude"
    runs = [moved(whole(), "H3", name, metric(v)) for v in (0.5, 0.5, 0.5, 0.75, 0.5)]
    [cell] = [c for c in runs[2]["cells"] if c["metrics"].get(name) == metric(0.5)]
    del cell["metrics"][name]
    floors = of_runs(monkeypatch, runs).floors["H3"]["bf16_pure"]
    assert floors[name] == 0.25


def test_a_floor_that_was_measured_widens_the_limit_and_no_other_budgets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tight, worse = metric(0.5), metric(0.52)
    before = moved(whole(), "H1", "log_ratio_nsr", tight)
    after = moved(whole(), "H1", "log_ratio_nsr", worse)
    file = tmp_path / "b.json"
    write_baseline(file, small.baseline(known(before)))
    assert judge(after, load_baseline(file)).exit_code == 1
    result = calibrated(monkeypatch, 0.5, 0.5, 0.53, 0.5, 0.5)
    calibrate.write_calibration(result, tmp_path, file)
    assert judge(after, load_baseline(file)).exit_code == 0
    result = replace(result, context=replace(result.context, budget="quick"))
    with pytest.raises(ValueError, match="budget whole -> quick: this noise says nothing of it"):
        calibrate.write_calibration(result, tmp_path, file)
