"""What the sampler reported is kept, and a replay says how far the policy is from it."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from precision_lib.forensics.h5.declaration import H5
from precision_lib.matrix import get_configuration
from precision_lib.metrics import rollout
from precision_lib.models.pipeline import Pipeline
from precision_lib.reporting.replay import replay_lines
from precision_lib.trajectories import shards
from precision_lib.trajectories.batches import FreezeSettings
from precision_lib.trajectories.freeze import freeze
from precision_lib.trajectories.replay import replay
from precision_lib.trajectories.replay_record import ReplayRecord, RolloutMismatch
from precision_lib.trajectories.rollout_mismatch import mismatch_sums, rollout_mismatch
from precision_lib.trajectories.shards import TrajectoryError, read_manifest, read_shards
from tests.unit.small_pipelines import files_of, random_pipeline
from tests.unit.trajectories.test_trajectory_store import some_trajectories

SMALL = FreezeSettings(num_batches=2, batch_size=4, max_new_tokens=10, samples_per_prompt=2)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return random_pipeline("Qwen3", moved=2.0**-7)


def frozen_in(pipeline: Pipeline, directory: Path, fmt: str) -> Path:
    freeze(pipeline, dataclasses.replace(SMALL, rollout=fmt), directory)
    return directory


def metric(record: ReplayRecord, name: str) -> float:
    assert isinstance(record.rollout_mismatch, RolloutMismatch)
    return record.rollout_mismatch.metrics[name].value


def test_a_known_difference_gives_the_known_figures_over_shards_of_any_length() -> None:
    """d = log 1.25 on every token of the first shard and 0 on the second."""
    first, second = some_trajectories(0), some_trajectories(1)
    step = math.log(1.25)
    second = dataclasses.replace(second, rollout_logprobs=second.logprobs)
    first = dataclasses.replace(first, rollout_logprobs=first.logprobs - step * first.mask)
    parts = [mismatch_sums(t.logprobs, t) for t in (first, second)]
    mismatch = rollout_mismatch("fp32", parts)
    assert isinstance(mismatch, RolloutMismatch)
    got = {n: m.value for n, m in mismatch.metrics.items()}
    lengths, weights = [6, 2, 1], [1.25**6, 1.25**2, 1.25, 1, 1, 1]
    want = {
        "rollout_log_ratio_final": step * math.sqrt(sum(n * n for n in lengths) / 6),
        "rollout_logprob_abs_diff_mean": step / 2,
        "rollout_token_outside_clip_frac": 0.5,
        "rollout_k3": (0.25 - step) / 2,
        "rollout_sequence_ess": sum(weights) ** 2 / (6 * sum(w * w for w in weights)),
        "rollout_nonfinite_frac": 0.0,
    }
    assert got == pytest.approx(want, rel=2.0**-20), "log-probs are FP32, of size 1"
    assert list(got) == list(H5.metrics)
    alone = rollout.figures(rollout.joined_sums(parts[:1]))["rollout_sequence_ess"]
    assert alone != pytest.approx(got["rollout_sequence_ess"], rel=0.01), "shards are put together"


def test_a_policy_beside_its_own_log_probs_differs_by_exactly_nothing() -> None:
    t = some_trajectories()
    t = dataclasses.replace(t, rollout_logprobs=t.logprobs)
    found = rollout_mismatch("fp32", [mismatch_sums(t.logprobs, t)])
    assert isinstance(found, RolloutMismatch)
    assert (found.sequences, found.response_tokens) == (3, 9)
    values = {n: m.value for n, m in found.metrics.items()}
    assert values == dict.fromkeys(values, 0.0) | {"rollout_sequence_ess": 1.0}
    broken = t.logprobs.clone()
    broken[0, 2] = -math.inf
    values = rollout.figures(mismatch_sums(broken, t))
    assert values["rollout_nonfinite_frac"] == 1 / 9
    with pytest.raises(ValueError, match="nothing would be compared"):
        rollout.padded_sums(torch.zeros(1, 2).numpy(), torch.zeros(1, 2, dtype=torch.bool).numpy())


def test_the_sampler_has_its_format_and_the_golden_figures_stay_fp32(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """Expected: an FP32 policy beside an FP32 sampler differs by 2**-16 of what bf16 makes of it.

    That is the ratio of the two roundoffs; a factor of 256 is left for chance.
    """
    record = {}
    for fmt in ("fp32", "bf16", "int8"):
        directory = frozen_in(pipeline, tmp_path / fmt, fmt)
        assert read_manifest(directory).rollout == fmt
        assert "rollout" not in read_manifest(directory).settings
        record[fmt] = replay(
            pipeline, get_configuration("fp32_baseline"), directory, tmp_path / f"replay-{fmt}"
        )
        assert all((record[fmt].golden_repeats.bitwise_equal or {"": False}).values())
        assert record[fmt].rollout_mismatch.format == fmt
    name = "rollout_logprob_abs_diff_mean"
    fp32, bf16, int8 = (metric(record[fmt], name) for fmt in ("fp32", "bf16", "int8"))
    assert 0 < fp32 < 2.0**-8 * min(bf16, int8)
    text = "\n".join(replay_lines(record["int8"]))
    assert "rollout mismatch, policy minus the int8 sampler's log-probs:" in text
    assert f"  {name:<32}{int8:.3g} nats" in text


def test_a_bf16_policy_is_nearer_to_a_bf16_sampler_than_to_an_fp32_one(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """They share the rounding of the weights; the replay's figure is what H5 calls the damage."""
    damage = {
        fmt: metric(
            replay(
                pipeline,
                get_configuration("bf16_pure"),
                frozen_in(pipeline, tmp_path / fmt, fmt),
                tmp_path / f"replay-{fmt}",
            ),
            H5.decision.metric,
        )
        for fmt in ("fp32", "bf16")
    }
    assert 0 < damage["bf16"] < damage["fp32"]


def test_what_an_older_release_froze_is_replayed_without_and_not_continued(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    directory = frozen_in(pipeline, tmp_path / "new", "fp32")
    with pytest.raises(TrajectoryError, match="made with rollout = fp32, asked for bf16"):
        freeze(pipeline, dataclasses.replace(SMALL, rollout="bf16"), directory, resume=True)
    old = dataclasses.replace(read_manifest(directory), shards=(), rollout="")
    for shard, t in zip(read_manifest(directory).shards, read_shards(directory), strict=True):
        before = dataclasses.replace(t, rollout_logprobs=None)
        old = shards.add_shard(directory, old, before, shard.rows)
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    del content["rollout"], content["sha256"]
    content["schema"] = "precision-forensics/trajectories/1"
    path.write_text(json.dumps(content | {"sha256": shards._digest(content)}))
    record = replay(pipeline, get_configuration("bf16_pure"), directory, tmp_path / "replay")
    assert record.rollout_mismatch.format is None
    assert "rollout mismatch: not measured, the trajectories were frozen by a release" in "\n".join(
        replay_lines(record)
    )
    files = files_of(directory)
    with pytest.raises(TrajectoryError, match="did not keep the sampler's log-probs"):
        freeze(pipeline, dataclasses.replace(SMALL, num_batches=3), directory, resume=True)
    assert files_of(directory) == files


def test_a_format_that_no_sampler_has_is_refused() -> None:
    with pytest.raises(ValueError, match="rollout = 'fp64' is no format of a sampler; use one of"):
        dataclasses.replace(SMALL, rollout="fp64")
