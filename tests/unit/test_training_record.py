"""The committed record of a sweep: whole, of the matrix, and what README and findings say of it."""

from pathlib import Path
from typing import Any

import pytest

from precision_lib.matrix import MATRIX, TWIN
from precision_lib.sweep.budget import SEEDS
from tests.unit.test_readme_figures import between
from tools.training_tables import training_tables

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "docs" / "records" / "sweep" / "sweep.json"
#: PPO is said to learn where the reward rises by a standard deviation of the initial reward, while
#: the KL stays below so many nats per response of up to 24 tokens: about one nat per token.
GAIN, KL_BOUND = 1.0, 25.0


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    from precision_lib.phases.sweep import load_sweep_record

    return load_sweep_record(RECORD)


def test_the_record_is_whole_and_a_real_measurement(record: dict[str, Any]) -> None:
    assert record["complete"]
    assert record["failed"] == {}
    assert record["context"]["commit"]["dirty"] is False
    assert record["evidence"] is not None


def test_it_holds_every_configuration_for_three_seeds_and_150_steps(record: dict[str, Any]) -> None:
    seeds = {run["seed"] for run in record["runs"]}
    assert len(seeds) >= 3
    wanted = {(c.name, seed) for c in (*MATRIX, TWIN) for seed in seeds}
    assert {(run["configuration"], run["seed"]) for run in record["runs"]} == wanted
    for run in record["runs"]:
        assert run["observed_formats"] == run["formats"]
        if run["status"] == "completed":
            assert len(run["curves"]["reward_mean"]) == run["last_step"] >= 150


def test_the_fp32_baseline_learns_with_three_seeds(record: dict[str, Any]) -> None:
    """Seeds 0 to 2, the default ones; the findings say how the others did."""
    runs = {r["seed"]: r for r in record["runs"] if r["configuration"] == "fp32_baseline"}
    for run in (runs[seed] for seed in SEEDS):
        before, after = run["evaluation"]["initial"], run["evaluation"]["final"]
        gain = (after["reward_mean"] - before["reward_mean"]) / before["reward_std"]
        assert gain >= GAIN, f"seed {run['seed']}: {gain:.2f} standard deviations"
        assert after["kl_per_sequence"] < KL_BOUND


def test_the_findings_are_the_records(record: dict[str, Any]) -> None:
    document = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert between(document, "training") == training_tables(record).strip()


def test_the_readme_shows_the_curves() -> None:
    picture = "docs/images/ppo_curves.png"
    assert picture in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
