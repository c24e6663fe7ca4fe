"""A replay measures formats and nothing else: exact zeros where due, faults where planted."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from precision_lib.forensics.statistics import NothingComparedError
from precision_lib.matrix import MATRIX, PrecisionConfig, get_configuration
from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.value_head import load_value_head, save_value_head
from precision_lib.phases.replay import golden_failure, run_replay
from precision_lib.ppo.logprobs import shift, token_logprobs
from precision_lib.reporting.replay import replay_lines
from precision_lib.runtime import deterministic
from precision_lib.scoring.forward import trunk_and_logits
from precision_lib.trajectories.batches import FreezeSettings
from precision_lib.trajectories.freeze import freeze
from precision_lib.trajectories.replay import replay
from precision_lib.trajectories.shards import (
    TrajectoryError,
    add_shard,
    read_manifest,
    read_shards,
    write_manifest,
)
from precision_lib.trajectories.store import Trajectories
from tests.unit.small_pipelines import files_of, random_pipeline

PURE, REFERENCE_RUN = get_configuration("bf16_pure"), get_configuration("fp32_baseline")
HALF = PrecisionConfig("half", "fp16", "fp16", "fp16", "fp16", "fp16")
Rerun = Callable[..., dict[str, Any]]
QUANTITIES = ["policy_logprob", "reference_logprob", "log_ratio", "value", "reward"]
#: In the order of the file.
KEYS = """
noise_floor golden_repeats schema configuration observed_formats summary by_position
rollout_mismatch throughput made_with trajectories
"""
#: Two float64 sums of n squares in different orders agree within n u relative, 2u = EPSILON.
EPSILON = 2.0**-52


def freeze_into(pipeline: Pipeline, directory: Path, **changes: Any) -> Path:
    small = FreezeSettings(num_batches=2, batch_size=4, max_new_tokens=10, samples_per_prompt=2)
    freeze(pipeline, replace(small, **changes), directory)
    return directory


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """A reference that is not the policy."""
    return random_pipeline("Qwen3", moved=2.0**-7)


@pytest.fixture(scope="module")
def frozen(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return freeze_into(pipeline, tmp_path_factory.mktemp("frozen"))


def run(
    pipeline: Pipeline,
    configuration: PrecisionConfig,
    frozen: Path,
    output_dir: Path,
    **options: int,
) -> dict[str, Any]:
    """Replay the frozen trajectories; the record as its file holds it."""
    replay(pipeline, configuration, frozen, output_dir, options.get("batch_size"))
    record: dict[str, Any] = json.loads((output_dir / "replay.json").read_text())
    return record


@pytest.fixture
def rerun(pipeline: Pipeline, frozen: Path, tmp_path: Path) -> Rerun:
    """Replay the frozen trajectories in a configuration, into ``tmp_path``."""
    return lambda configuration, **options: run(
        pipeline, configuration, frozen, tmp_path, **options
    )


def shards(frozen: Path) -> list[Trajectories]:
    return list(read_shards(frozen))


def test_an_fp32_replay_is_bitwise_equal_to_the_frozen_figures(rerun: Rerun) -> None:
    record = rerun(REFERENCE_RUN)
    assert record["golden_repeats"] == {
        "applies": True,
        "required": True,
        "bitwise_equal": dict.fromkeys(QUANTITIES, True),
        "differs": [],
    }
    for name in QUANTITIES:
        summary = record["summary"][name]
        assert (summary["rms"], summary["max_abs"], summary["mean"]) == (0, 0, 0)
        assert summary["n"] > 0
    assert record["noise_floor"]["fp32_against_frozen"]["policy_logprob"]["max_abs"] == 0


@pytest.mark.parametrize("configuration", MATRIX, ids=lambda c: c.name)
def test_observed_formats_are_those_of_the_configuration(
    rerun: Rerun, configuration: PrecisionConfig
) -> None:
    record = rerun(configuration)
    assert record["observed_formats"] == configuration.components
    assert record["configuration"] == {"name": configuration.name} | configuration.components
    low = {c for c, fmt in configuration.components.items() if fmt == "bf16"}
    errors = {name: record["summary"][name]["max_abs"] > 0 for name in QUANTITIES}
    assert errors["policy_logprob"] == bool(low & {"policy", "kl"})
    assert errors["reference_logprob"] == bool(low & {"reference", "kl"})
    assert errors["value"] == bool(low & {"policy", "value"})
    assert errors["reward"] == ("reward" in low)


def test_the_record_is_strict_json_that_begins_with_the_noise_floor(
    rerun: Rerun, tmp_path: Path
) -> None:
    """Expected on a CPU: log-probs exactly 0, as every product computes its rows one by one."""
    rerun(PURE)
    record = json.loads((tmp_path / "replay.json").read_text(), parse_constant=pytest.fail)
    assert list(record) == KEYS.split()
    floor = record["noise_floor"]
    for run_name in ("repeated", "reversed", "rebatched", "fp32_against_frozen"):
        for name in ("policy_logprob", "reference_logprob", "log_ratio"):
            assert floor[run_name][name]["max_abs"] == 0
            assert floor[run_name][name]["n"] > 0
    assert floor["repeated"] == floor["reversed"]
    assert floor["rows_per_forward"] == {"usual": 4, "rebatched": 1}
    assert record["throughput"]["tokens"] > 0
    assert record["trajectories"]["complete"]


def test_differences_are_replayed_minus_frozen_on_real_tokens(
    rerun: Rerun, pipeline: Pipeline, frozen: Path, tmp_path: Path
) -> None:
    """Against a replay written out here: cast, one forward, log-softmax in the format."""
    record = rerun(PURE)
    model = working_copy(pipeline.policy.model)
    set_parameters(model, pipeline.policy.model, "bf16")
    squares, count = 0.0, 0
    for index, t in enumerate(shards(frozen)):
        stored = load_file(tmp_path / f"differences-{index:05d}.safetensors")
        assert set(stored) == {*QUANTITIES, "mask"}
        assert torch.equal(stored["mask"], t.mask)
        with torch.no_grad(), deterministic():
            logits, tokens = shift(model(input_ids=t.tokens, use_cache=False).logits, t.tokens)
            want = token_logprobs(logits, tokens, torch.bfloat16).double() - t.logprobs.double()
        assert torch.equal(stored["policy_logprob"], (want * t.mask).float())
        assert not stored["value"][~t.mask].any()
        squares += float(want[t.mask].square().sum())
        count += int(t.mask.sum())
    summary = record["summary"]["policy_logprob"]
    assert summary["n"] == count == record["trajectories"]["response_tokens"]
    assert math.isclose(summary["rms"], math.sqrt(squares / count), rel_tol=count * EPSILON)


def test_positions_are_binned_geometrically_and_errors_accumulate(
    rerun: Rerun, frozen: Path, tmp_path: Path
) -> None:
    record = rerun(PURE)
    parts = []
    for index, t in enumerate(shards(frozen)):
        stored = load_file(tmp_path / f"differences-{index:05d}.safetensors")
        parts += [
            t.response(stored["log_ratio"].double())[row, : int(length)]
            for row, length in enumerate(t.response_lengths)
        ]
    bins = record["by_position"]["log_ratio"]
    assert [(b["first"], b["last"]) for b in bins] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16)]
    for entry in bins:
        inside = [p.cumsum(0)[entry["first"] - 1 : entry["last"]] for p in parts]
        want = torch.cat(inside)
        assert entry["n"] == entry["accumulated"]["n"] == len(want)
        rms = float(want.square().mean().sqrt())
        assert math.isclose(entry["accumulated"]["rms"], rms, rel_tol=len(want) * EPSILON)
    assert "accumulated" not in record["by_position"]["value"][0]


def test_equal_models_in_one_format_have_a_log_ratio_of_exactly_zero(tmp_path: Path) -> None:
    pipeline = random_pipeline()
    frozen = freeze_into(pipeline, tmp_path / "frozen")
    record = run(pipeline, PURE, frozen, tmp_path / "same")
    assert record["summary"]["log_ratio"]["max_abs"] == 0
    assert record["summary"]["policy_logprob"]["max_abs"] > 0
    mixed = run(pipeline, get_configuration("bf16_fp32_ref"), frozen, tmp_path / "mixed")
    assert mixed["summary"]["log_ratio"]["max_abs"] > 0


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_the_forwards_and_not_the_log_probs(
    rerun: Rerun, batch_size: int
) -> None:
    record = rerun(REFERENCE_RUN, batch_size=batch_size)
    assert record["trajectories"]["rows_per_forward"] == [min(batch_size, 4)]
    assert record["golden_repeats"]["required"] == (batch_size >= 4)
    assert record["summary"]["policy_logprob"]["max_abs"] == 0


def test_the_noise_floor_sees_a_forward_that_depends_on_its_batch(
    rerun: Rerun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: logits that depend on the number of rows, as a kernel with split sums does."""

    def batch_dependent(model: Any, tokens: torch.Tensor) -> Any:
        hidden, logits = trunk_and_logits(model, tokens)
        return hidden, logits * (1 + 2.0**-10 * len(tokens))

    place = "precision_lib.scoring.forward.trunk_and_logits"
    monkeypatch.setattr(place, batch_dependent)
    record = rerun(REFERENCE_RUN)
    floor = record["noise_floor"]
    assert floor["repeated"]["policy_logprob"]["max_abs"] == 0
    assert floor["rebatched"]["policy_logprob"]["max_abs"] > 0
    assert floor["fp32_against_frozen"]["policy_logprob"]["max_abs"] > 0
    assert record["golden_repeats"]["required"]
    assert record["golden_repeats"]["bitwise_equal"] == {
        "policy_logprob": False,
        "reference_logprob": False,
        "log_ratio": False,
        "value": True,
        "reward": True,
    }


def test_a_dropout_left_on_shows_in_the_noise_floor(tmp_path: Path) -> None:
    pipeline = random_pipeline("GPT2")
    frozen = freeze_into(pipeline, tmp_path / "frozen")
    pipeline.policy.model.train()
    floor = run(pipeline, PURE, frozen, tmp_path / "replay")["noise_floor"]
    assert floor["repeated"]["policy_logprob"]["max_abs"] > 0


def test_golden_figures_that_do_not_repeat_make_the_replay_inconclusive(
    pipeline: Pipeline, frozen: Path, tmp_path: Path
) -> None:
    """Planted: one frozen value in its last bit, as another processor may compute it."""
    manifest = read_manifest(frozen)
    first, *_ = shards(frozen)
    place = tuple(first.mask.nonzero()[0].tolist())
    values = first.values.clone()
    values[place] = torch.nextafter(values[place], torch.tensor(9.0))
    shutil.copy(frozen / "value_head.safetensors", tmp_path)
    moved = replace(manifest, shards=(), num_batches=1)
    add_shard(tmp_path, moved, replace(first, values=values), manifest.shards[0].rows)
    record = replay(pipeline, REFERENCE_RUN, tmp_path, tmp_path / "replay")
    assert record.golden_repeats.bitwise_equal == dict.fromkeys(QUANTITIES, True) | {"value": False}
    failure = golden_failure(record)
    assert failure is not None
    assert failure.startswith("the FP32 replay differs from the frozen figures in value, on the ")
    assert golden_failure(replay(pipeline, REFERENCE_RUN, frozen, tmp_path / "clean")) is None
    assert golden_failure(replay(pipeline, PURE, tmp_path, tmp_path / "pure")) is None


def test_overflow_is_counted_and_enters_no_mean(tmp_path: Path) -> None:
    """fp16 logits beyond 65,504 are infinite; the record stays strict JSON."""
    pipeline = random_pipeline()
    with torch.no_grad():
        pipeline.policy.model.lm_head.weight.mul_(2.0**18)
    frozen = freeze_into(pipeline, tmp_path / "frozen")
    record = run(pipeline, HALF, frozen, tmp_path / "replay")
    summary = record["summary"]["policy_logprob"]
    assert summary["nonfinite"] > 0
    assert summary["n"] + summary["nonfinite"] == record["trajectories"]["response_tokens"]
    assert json.loads((tmp_path / "replay/replay.json").read_text(), parse_constant=pytest.fail)
    assert record["noise_floor"]["repeated"]["policy_logprob"]["nonfinite"] == 0


def test_an_exact_replay_of_fp32_is_off_by_fp32_roundings(
    pipeline: Pipeline, frozen: Path, tmp_path: Path
) -> None:
    """u is 2^-24 against 2^-8: expected a factor of 2^-16, of which 2^-8 is asked."""
    exact = PrecisionConfig("exact", "fp64", "fp64", "fp64", "fp64", "fp64")
    record = run(pipeline, exact, frozen, tmp_path / "exact")
    pure = run(pipeline, PURE, frozen, tmp_path / "pure")
    assert record["observed_formats"] == exact.components
    for name in QUANTITIES:
        assert 0 < record["summary"][name]["rms"] < 2.0**-8 * pure["summary"][name]["rms"]


def test_another_model_is_refused_by_role_and_option(
    pipeline: Pipeline, frozen: Path, tmp_path: Path
) -> None:
    other = replace(pipeline, reference=pipeline.policy)
    with pytest.raises(TrajectoryError, match=r"the reference was 'moved'.*\(--reference-model\)"):
        replay(other, PURE, frozen, tmp_path / "replay")
    assert not (tmp_path / "replay").exists()


def test_an_altered_value_head_is_refused(pipeline: Pipeline, frozen: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(frozen, tmp_path / "copy")
    path = copy / "value_head.safetensors"
    head = load_value_head(path)
    save_value_head(replace(head, bias=head.bias + 1), path)
    with pytest.raises(TrajectoryError, match=r"value_head.safetensors has SHA-256"):
        replay(pipeline, PURE, copy, tmp_path / "replay")
    path.unlink()
    with pytest.raises(TrajectoryError, match=r"value_head.safetensors cannot be read"):
        replay(pipeline, PURE, copy, tmp_path / "replay")


def test_no_sequence_is_nothing_compared(pipeline: Pipeline, frozen: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, replace(read_manifest(frozen), shards=()))
    with pytest.raises(NothingComparedError, match="holds no sequence yet, nothing would be"):
        run_replay(pipeline, PURE, tmp_path, tmp_path / "replay")


def test_a_refused_replay_leaves_the_earlier_one_and_a_new_one_replaces_all_of_it(
    rerun: Rerun, pipeline: Pipeline, frozen: Path, tmp_path: Path
) -> None:
    rerun(PURE)
    before = files_of(tmp_path)
    assert list(before) == [*(f"differences-0000{i}.safetensors" for i in (0, 1)), "replay.json"]
    with pytest.raises(TrajectoryError):
        replay(replace(pipeline, reference=pipeline.policy), PURE, frozen, tmp_path)
    assert files_of(tmp_path) == before
    copy = shutil.copytree(frozen, tmp_path / "copy")
    manifest = read_manifest(copy)
    write_manifest(copy, replace(manifest, shards=manifest.shards[:1]))
    record = run(pipeline, PURE, copy, tmp_path)
    assert not record["trajectories"]["complete"]
    assert "differences-00001.safetensors" not in files_of(tmp_path)


def test_the_table_shows_the_floor_before_the_errors(
    pipeline: Pipeline, frozen: Path, tmp_path: Path
) -> None:
    text = "\n".join(replay_lines(replay(pipeline, REFERENCE_RUN, frozen, tmp_path)))
    places = [
        text.index(part)
        for part in (
            "fp32_baseline: policy=fp32",
            "noise floor, largest",
            "FP32 here against frozen FP32",
            "error against frozen FP32",
            "accumulated log-ratio error",
            "bitwise equal to the frozen figures: True",
            "tokens/s scored",
        )
    ]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) < 130
