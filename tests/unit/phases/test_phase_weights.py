"""Manifests of the weights that freeze and replay scored with: equal where they are one model."""

from pathlib import Path

import pytest

from precision_lib import cli
from precision_lib.matrix import get_configuration
from precision_lib.phases.freeze import run_freeze
from precision_lib.phases.replay import run_replay
from precision_lib.trajectories.batches import FreezeSettings
from tests.unit.small_pipelines import random_pipeline


@pytest.mark.parametrize("name", ["bf16_pure", "bf16_fp32_head"])
def test_the_weights_of_freeze_arrive_at_replay_and_the_reference_is_another(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration, pipeline = get_configuration(name), random_pipeline("Qwen3", moved=2.0**-7)
    small = FreezeSettings(num_batches=1, batch_size=2, max_new_tokens=4, samples_per_prompt=2)
    frozen, replayed = tmp_path / "frozen", tmp_path / "replayed"
    run_freeze(pipeline, small, frozen)
    run_replay(pipeline, configuration, frozen, replayed)
    for component in ("policy", "reference", "reward"):
        sides = [str(directory / f"weights_{component}.json") for directory in (frozen, replayed)]
        head = ["--keep-fp32", "lm_head"] if configuration.lm_head else []
        assert cli.main(["weights", *sides, *head]) == 0
    capsys.readouterr()
    others = [str(frozen / "weights_policy.json"), str(replayed / "weights_reference.json")]
    assert cli.main(["weights", *others]) == 1
    assert "weights: different" in capsys.readouterr().out
