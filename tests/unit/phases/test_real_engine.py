"""Dumps that vLLM made of the embedded model, with known causes, get their verdicts."""

from pathlib import Path
from typing import Any

import pytest

from precision_lib import cli
from precision_lib.mismatch.rollout import read_rollout
from precision_lib.models.loading import load_checkpoint
from precision_lib.phases.rollout_check import run_rollout_check

ROLLOUTS = Path(__file__).parents[3] / "docs/records/rollouts"


def test_vllm_in_bf16_is_precision(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rollout-check", "--model=embedded", str(ROLLOUTS / "vllm_bf16.npz")]
    assert cli.main(arguments) == 0
    assert "verdict: precision (rounding)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("claims", "cause"),
    [
        ({}, "raw log-probs of changed sampling"),
        ({"temperature": 1.0}, "silent change of sampling"),
    ],
    ids=["claimed", "silent"],
)
def test_vllm_at_another_temperature_is_semantics(claims: dict[str, Any], cause: str) -> None:
    """It reports raw log-probs by default: d is rounding alone, and FP32 is enough to see it."""
    unclaimed = {"rollout_dtype": None, **claims}
    rollout = read_rollout(ROLLOUTS / "vllm_temperature_0.7_raw.npz", unclaimed)
    judgement = run_rollout_check(load_checkpoint(), rollout).judgement
    assert (judgement.verdict, judgement.cause) == ("semantics", cause)
    assert judgement.fingerprints["surprisal"].rejects
    assert judgement.fingerprints["pit"].rejects
    assert not judgement.fingerprints["slope"].rejects
