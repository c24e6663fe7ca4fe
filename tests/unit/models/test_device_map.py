"""A model spread over devices gives the bits of the plain one, or is refused.

Without a GPU: accelerate's own hooks are put into small models, on the CPU alone and on the two
devices of ``simulated_devices``, where an operation on two of them raises.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib import cli, commands
from precision_lib.forensics.forwards import POLICY, Forwards
from precision_lib.forensics.probe import ProbeSettings, prepare
from precision_lib.matrix import get_configuration
from precision_lib.models.loading import (
    Checkpoint,
    CheckpointError,
    NoDeviceError,
    load_checkpoint,
    parameter_digest,
    target_device,
    working_copy,
)
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.placement import devices_of, spread
from precision_lib.models.value_head import ValueHead
from precision_lib.runtime import deterministic
from precision_lib.scoring.forced import Forced, forced
from precision_lib.scoring.micro import Micro
from precision_lib.trajectories.batches import FreezeSettings
from precision_lib.trajectories.freeze import freeze
from precision_lib.trajectories.replay import replay
from precision_lib.trajectories.working_copy import WorkingCopy
from tests.unit.simulated_devices import (
    FIRST,
    HOST,
    SECOND,
    dispatched,
    split_map,
    two_devices,
)
from tests.unit.small_pipelines import files_of, random_checkpoint, random_pipeline

TOKENS = torch.arange(1, 41).view(4, 10)
MICRO = Micro(3, torch.arange(4))
SETTINGS = FreezeSettings(num_batches=2, batch_size=4, max_new_tokens=6)


@pytest.fixture
def _accelerate() -> None:
    pytest.importorskip("accelerate", reason="a device map needs the extra multi-gpu")


needs_accelerate = pytest.mark.usefixtures("_accelerate")


def logprobs(checkpoint: Checkpoint, fmt: str) -> Forced:
    """Log-probs and values of fixed tokens by the path of freeze and replay."""
    model = WorkingCopy().of(checkpoint.model, fmt)
    width = checkpoint.model.config.hidden_size
    head = ValueHead(torch.linspace(-1, 1, width), torch.tensor(0.5))
    mask = torch.ones(4, 9, dtype=torch.bool)
    with deterministic():
        return forced(model, TOKENS, mask, MICRO, kl_formats=(fmt,), head=head, value_format=fmt)


def assert_same_bits(got: Forced, want: Forced) -> None:
    assert got.values is not None
    assert want.values is not None
    assert all(torch.equal(x, want.logprobs[fmt]) for fmt, x in got.logprobs.items())
    assert torch.equal(got.values, want.values)
    assert (got.parameters, got.logits) == (want.parameters, want.logits)


@needs_accelerate
def test_a_deep_copy_casts_the_original_and_a_working_copy_does_not() -> None:
    """The planted fault is ``copy.deepcopy``: its ``to`` is a closure over the original."""
    checkpoint = dispatched(random_checkpoint(), HOST, HOST)
    copy.deepcopy(checkpoint.model).to(torch.bfloat16)
    assert parameter_digest(checkpoint.model) != checkpoint.sha256

    checkpoint = dispatched(random_checkpoint(), HOST, HOST)
    own = working_copy(checkpoint.model).to(torch.bfloat16)
    assert {p.dtype for p in own.parameters()} == {torch.bfloat16}
    assert parameter_digest(checkpoint.model) == checkpoint.sha256


def test_the_simulation_sees_two_devices_meet() -> None:
    """The planted fault is an index on the tokens' device, as scores once were read."""
    with two_devices():
        hidden, row = torch.ones(4, 3, 2, device=SECOND), torch.arange(4, device=FIRST)
        with pytest.raises(RuntimeError, match="__getitem__ was given cpu:1 and cpu:2"):
            hidden[row, 0]
        assert hidden[row.to(hidden.device), 0].device == SECOND
        with pytest.raises(RuntimeError, match="add was given cpu and cpu:2"):
            hidden + torch.ones(2)
        assert (hidden + torch.tensor(1.0)).sum(0).device == SECOND
        assert hidden.cpu().device == HOST


def spread_pipeline(pipeline: Pipeline) -> Pipeline:
    """All models cut in two, the reference the other way round."""
    dispatched(pipeline.policy)
    if pipeline.reference is not pipeline.policy:
        dispatched(pipeline.reference, SECOND, FIRST)
    dispatched(pipeline.reward)
    return pipeline


@needs_accelerate
def test_freeze_and_replay_of_spread_models_repeat_the_plain_ones(tmp_path: Path) -> None:
    """Sampling, value head, log-probs, scores: every shard and every difference, byte for byte."""
    configuration = get_configuration("mixed_recommended", None)
    plain = random_pipeline(moved=1e-3)
    want = freeze(plain, SETTINGS, tmp_path / "plain")
    record = replay(plain, configuration, tmp_path / "plain", tmp_path / "replayed")
    with two_devices():
        pipeline = spread_pipeline(random_pipeline(moved=1e-3))
        got = freeze(pipeline, SETTINGS, tmp_path / "split")
        again = replay(pipeline, configuration, tmp_path / "plain", tmp_path / "again")
    assert got.models == want.models
    assert [s.sha256 for s in got.shards] == [s.sha256 for s in want.shards]
    assert got.made_with == want.made_with | {"device": "cpu, cpu"}
    for name in ("summary", "noise_floor", "observed_formats"):
        assert getattr(again, name) == getattr(record, name)
    differences = [files_of(tmp_path / d) for d in ("replayed", "again")]
    assert [f.pop("replay.json") for f in differences]
    assert differences[0] == differences[1]


@needs_accelerate
def test_the_probe_of_a_spread_model_repeats_the_plain_one() -> None:
    """Its few AdamW steps included: gradients come back over both devices."""
    settings = ProbeSettings(num_prompts=8, seq_lengths=(8,))

    def measured(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        given = prepare(checkpoint, settings)
        forwards = Forwards(given, ("bf16", "fp32"))
        found = {f"direction {name}": x.cpu() for name, x in given.direction.items()}
        found["scales"] = torch.tensor(given.scales)
        for fmt in ("fp32", "bf16", "fp64"):
            found |= {f"{fmt} {k}": x for k, x in forwards.scored(POLICY, 3, fmt).logprobs.items()}
        found["kl"] = forwards.true_kl(3)
        found |= dataclasses.asdict(forwards.theory(3))
        return found

    want = measured(random_checkpoint())
    with two_devices():
        checkpoint = dispatched(random_checkpoint())
        got = measured(checkpoint)
        assert parameter_digest(checkpoint.model) == checkpoint.sha256
    assert want["kl"].count_nonzero() > 0
    assert [name for name, x in want.items() if not torch.equal(got[name], x)] == []


@needs_accelerate
def test_a_checkpoint_loads_over_two_devices(saved_checkpoint: Callable[[str], Path]) -> None:
    """By ``from_pretrained`` itself; the digest does not depend on where a parameter is."""
    directory = str(saved_checkpoint("Llama"))
    plain = load_checkpoint(directory)
    with two_devices():
        split = load_checkpoint(directory, device_map=split_map(plain.model))
        assert devices_of(split.model) == (FIRST, SECOND)
        assert not any(p.requires_grad for p in split.model.parameters())
        assert split.sha256 == plain.sha256
        assert_same_bits(logprobs(split, "bf16"), logprobs(plain, "bf16"))
        assert set(spread(split.model)["parameter_bytes"]) == {"cpu:1", "cpu:2"}
    assert spread(plain.model) == {}


@needs_accelerate
def test_weights_left_on_disk_are_refused(saved_checkpoint: Callable[[str], Path]) -> None:
    """What accelerate does with a model that the devices cannot hold."""
    directory = str(saved_checkpoint("Llama"))
    places: dict[str, Any] = dict.fromkeys(split_map(load_checkpoint(directory).model), "cpu")
    places["model.layers.1"] = "disk"
    with pytest.raises(CheckpointError, match=r"too small, 9 of .*\(model\.layers\.1\..*more GPUs"):
        load_checkpoint(directory, device_map=places)


@needs_accelerate
def test_a_bad_placement_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("auto", "balanced", "balanced_low_0", "sequential", "cpu"):
        assert target_device("cpu", name) is None
    with pytest.raises(ValueError, match="unknown device map 'gpu'; use auto, balanced, "):
        target_device("cpu", "gpu")
    with pytest.raises(ValueError, match="both place the model; give one"):
        target_device("cuda", "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoDeviceError, match="no CUDA device"):
        target_device("cpu", "cuda:1")


def test_a_map_without_accelerate_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.utils.is_accelerate_available", lambda: False)
    with pytest.raises(CheckpointError, match=r"the package accelerate.* extra multi-gpu: pip ins"):
        load_checkpoint(device_map="auto")
    freezing = ["freeze", "--device-map", "auto", "--output_dir", str(tmp_path)]
    assert cli.main(freezing) == commands.USAGE
    assert "rlhf-precision-forensics[multi-gpu]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["probe"], ["freeze"], ["replay", "--precision_config", "bf16_pure"]]
)
def test_a_map_beside_a_device_is_a_usage_error(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    freeze(random_pipeline(), dataclasses.replace(SETTINGS, num_batches=1), tmp_path / "frozen")
    if command[0] == "replay":
        command = [*command, "--trajectories_dir", str(tmp_path / "frozen")]
    asked = ["--output_dir", str(tmp_path / "out"), "--device", "cuda", "--device-map", "auto"]
    assert cli.main([*command, *asked]) == commands.USAGE
    assert capsys.readouterr().err == (
        "precision-forensics: --device-map auto places the models itself; leave out --device cuda\n"
    )
