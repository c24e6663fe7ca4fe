"""Manifests that a run writes: two sides that agree, a series of changed codes, the same resumed.

At learning rate 0 no code changes; at another rate the record's share is the one of the line.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from precision_lib import cli
from tests.unit.small_runs import pipeline, step_lines, train

EVERY: dict[str, Any] = {"checkpoint_every": 1, "max_steps": 2}


def manifests(directory: Path, side: str) -> list[str]:
    return sorted(str(path) for path in directory.glob(f"weights_{side}_*.json"))


def weights(*arguments: str, json_file: Path) -> tuple[int, dict[str, Any]]:
    code = cli.main(["weights", *arguments, "--json", str(json_file)])
    return code, json.loads(json_file.read_text())


@pytest.mark.parametrize("name", ["bf16_pure", "fp32_baseline", "all_fp16"])
def test_the_series_shows_the_share_of_changed_codes_of_each_step(
    name: str, tmp_path: Path
) -> None:
    train(tmp_path, name, **EVERY)
    trainer, rollout = manifests(tmp_path, "trainer"), manifests(tmp_path, "rollout")
    assert len(trainer) == len(rollout) == 3
    code, record = weights(trainer[-1], rollout[-1], json_file=tmp_path / "r.json")
    assert (code, record["verdict"]) == (0, "equal")
    code, record = weights(
        rollout[-1], rollout[-1], "--older", *rollout, json_file=tmp_path / "r.json"
    )
    assert code == 0
    steps = record["changed_codes_by_step"]
    assert [(step["since"], step["to"]) for step in steps] == [
        ("step 0", "step 1"),
        ("step 1", "step 2"),
    ]
    sizes = {n: p.numel() for n, p in pipeline().policy.model.named_parameters()}
    assert set(steps[0]["shares"]) == set(sizes)
    for step, line in zip(steps, step_lines(tmp_path), strict=True):
        changed = sum(sizes[n] * share for n, share in step["shares"].items())
        moved = changed / sum(sizes.values())
        if name == "fp32_baseline":  # counted in bf16, which sees less than FP32
            assert 0 < moved < line["weights_moved_frac"]
        else:
            roundings = (2 * len(sizes) + 2) * 2.0**-53  # products, sums and a quotient
            assert moved == pytest.approx(line["weights_moved_frac"], rel=roundings)


def test_nothing_moves_at_learning_rate_0_and_a_moved_tensor_is_named(tmp_path: Path) -> None:
    for rate, directory in ((0.0, tmp_path / "still"), (1e-3, tmp_path / "trained")):
        train(directory, "bf16_pure", learning_rate=rate, **EVERY)
        series = manifests(directory, "trainer")
        code, record = weights(
            *(series[-1], series[-1], "--older", *series, "--learning-rate", "0"),
            json_file=tmp_path / "r.json",
        )
        shares = [x for step in record["changed_codes_by_step"] for x in step["shares"].values()]
        assert len(shares) == 2 * len(list(pipeline().policy.model.parameters()))
        if rate == 0:
            assert (code, set(shares)) == (0, {0.0})
        else:
            assert {finding["kind"] for finding in record["findings"]} == {"moved"}
            assert code == 1


def test_a_resumed_run_writes_the_same_manifests(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "parts", stop_before=2)
    train(tmp_path / "parts", resume=True)
    for path in sorted((tmp_path / "whole").glob("weights_*.json")):
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()
