"""The committed record of a sweep: whole, of the matrix, and what the documents say of it."""

from pathlib import Path
from typing import Any

import pytest

from precision_lib.matrix import MATRIX, TWIN
from precision_lib.record.files import load_sweep
from precision_lib.reporting.numbers import two
from precision_lib.reporting.training import sweep_lines
from precision_lib.sweep.budget import SEEDS
from tests.unit.repository.test_readme_figures import between, check_phrases, output_below
from tests.unit.small_blocks import read
from tools.training_tables import training_tables

ROOT = Path(__file__).parents[3]
RECORD = ROOT / "docs" / "records" / "sweep" / "sweep.json"
#: PPO is said to learn where the reward rises by a standard deviation of the initial reward, while
#: the KL stays below so many nats per response of up to 24 tokens: about one nat per token.
GAIN, KL_BOUND = 1.0, 25.0


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return read(RECORD)


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


def test_the_findings_are_the_records() -> None:
    document = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert between(document, "training") == training_tables(load_sweep(RECORD)).strip()


def test_the_readme_shows_rows_of_the_record() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = output_below(readme, "Does precision change what PPO learns?")
    printed = [text.rstrip() for text, _ in sweep_lines(load_sweep(RECORD))]
    assert len(shown) == 6
    assert [line for line in shown if line not in printed] == []


def test_the_words_about_training_are_the_records(record: dict[str, Any]) -> None:
    evidence, gains = record["evidence"], []
    for seed in evidence["seeds"]:
        [run] = [
            r for r in record["runs"] if (r["configuration"], r["seed"]) == ("fp32_baseline", seed)
        ]
        before, after = run["evaluation"]["initial"], run["evaluation"]["final"]
        gains.append(two((after["reward_mean"] - before["reward_mean"]) / before["reward_std"]))
    check_phrases(
        [
            f"raise the FP32-measured reward by {gains[0]}, {gains[1]} and {gains[2]} standard",
            f"Seeds 3 to 5 raise it by {gains[3]}, {gains[4]} and {gains[5]}.",
            f"comes from {len(record['runs'])} runs of {record['max_steps']} steps",
        ],
        (ROOT / "docs" / "findings.md").read_text(encoding="utf-8"),
    )
    assert "impaired" not in {cell["verdict"] for cell in evidence["cells"]}
    check_phrases(
        [f"In {len(gains)} seeds of {record['max_steps']} steps, no configuration is impaired"],
        (ROOT / "README.md").read_text(encoding="utf-8"),
    )


def test_the_page_about_training_shows_the_curves() -> None:
    picture = "images/ppo_curves.png"
    assert picture in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / picture).read_bytes().startswith(b"\x89PNG")
