"""A model spread over devices gives the bits of the plain one, or is refused.

Without a GPU: accelerate's own hooks are put into small models, on the CPU alone and on the two
devices of ``simulated_devices``, where an operation on two of them raises.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from precision_lib import cli, commands
from precision_lib.matrix import get_configuration
from precision_lib.models.loading import (
    Checkpoint,
    CheckpointError,
    NoDeviceError,
    load_checkpoint,
    parameter_digest,
    set_parameters,
    target_device,
    working_copy,
)
from precision_lib.models.placement import devices_of, is_dispatched, spread
from precision_lib.models.value_head import ValueHead
from precision_lib.runtime import deterministic
from precision_lib.trajectories.batches import FreezeSettings
from precision_lib.trajectories.freeze import freeze, software
from precision_lib.trajectories.replay import replay
from precision_lib.trajectories.replayer import Clock
from precision_lib.trajectories.scoring import Forced, Micro, forced
from precision_lib.trajectories.working import WorkingCopy, hollow_copy
from tests.unit.simulated_devices import (
    FIRST,
    HOST,
    SECOND,
    dispatched,
    split_map,
    two_devices,
)
from tests.unit.small_pipelines import files_of, random_checkpoint, random_pipeline

if TYPE_CHECKING:
    from precision_lib.models.pipeline import Pipeline

ARCHITECTURES = ("GPT2", "Llama", "Qwen2", "Qwen3")
TOKENS = torch.arange(1, 41).view(4, 10)
MICRO = Micro(3, torch.arange(4))
SETTINGS = FreezeSettings(num_batches=2, batch_size=4, max_new_tokens=6)


@pytest.fixture
def _accelerate() -> None:
    pytest.importorskip("accelerate", reason="a device map needs the extra multi-gpu")


needs_accelerate = pytest.mark.usefixtures("_accelerate")


def logprobs(checkpoint: Checkpoint, fmt: str, working: WorkingCopy | None = None) -> Forced:
    """Log-probs and values of fixed tokens by the path of freeze and replay."""
    model = (working or WorkingCopy()).of(checkpoint.model, fmt)
    width = checkpoint.model.config.hidden_size
    head = ValueHead(torch.linspace(-1, 1, width), torch.tensor(0.5))
    mask = torch.ones(4, 9, dtype=torch.bool)
    with deterministic():
        return forced(model, TOKENS, mask, MICRO, kl_format=fmt, head=head, value_format=fmt)


def assert_same_bits(got: Forced, want: Forced) -> None:
    assert got.values is not None
    assert want.values is not None
    assert torch.equal(got.logprobs, want.logprobs)
    assert torch.equal(got.values, want.values)
    assert (got.parameters, got.logits) == (want.parameters, want.logits)


@needs_accelerate
@pytest.mark.parametrize("fmt", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hooks_and_two_devices_change_no_bit(architecture: str, fmt: str) -> None:
    """Log-probs and values, by the original in FP32 and by a working copy otherwise."""
    want = logprobs(random_checkpoint(architecture), fmt)
    hooked = dispatched(random_checkpoint(architecture), HOST, HOST)
    assert is_dispatched(hooked.model)
    assert_same_bits(logprobs(hooked, fmt), want)
    with two_devices():
        split = dispatched(random_checkpoint(architecture))
        assert devices_of(split.model) == (FIRST, SECOND)
        assert_same_bits(logprobs(split, fmt), want)


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


@needs_accelerate
@pytest.mark.parametrize("make", [working_copy, hollow_copy])
def test_a_copy_runs_its_own_weights(make: Callable[[Any], Any]) -> None:
    """A copy of zeros gives logits of zero, and the original what it gave before."""
    checkpoint = dispatched(random_checkpoint("GPT2"), HOST, HOST)
    before = logprobs(checkpoint, "fp32")
    own = make(checkpoint.model)
    set_parameters(own, checkpoint.model, "fp32")
    assert is_dispatched(own)
    assert own._hf_hook is not checkpoint.model._hf_hook
    with torch.no_grad():
        assert torch.equal(own(TOKENS).logits, checkpoint.model(TOKENS).logits)
        for parameter in own.parameters():
            parameter.zero_()
        assert own(TOKENS).logits.eq(0).all()
    assert_same_bits(logprobs(checkpoint, "fp32"), before)


@needs_accelerate
@pytest.mark.parametrize("before_the_hooks", [True, False])
def test_a_replaced_forward_is_not_copied(before_the_hooks: bool) -> None:
    """The planted fault: a forward that is bound to the original, as older hooks' are."""
    checkpoint = random_checkpoint()
    if not before_the_hooks:
        dispatched(checkpoint, HOST, HOST)
    layer = checkpoint.model.model.layers[1]
    run = layer.forward
    layer.forward = lambda *args, **kwargs: run(*args, **kwargs)
    if before_the_hooks:
        dispatched(checkpoint, HOST, HOST)
    else:
        layer._old_forward = layer.forward
    with pytest.raises(RuntimeError, match=r"forward of model.layers.1 \(LlamaDecoderLayer\) was"):
        working_copy(checkpoint.model)


@needs_accelerate
def test_a_hollow_copy_of_a_spread_model_takes_no_memory_and_stays_tied() -> None:
    with two_devices():
        checkpoint = dispatched(random_checkpoint("Qwen3", tie_word_embeddings=True))
        model = checkpoint.model
        assert model.lm_head.weight is model.get_input_embeddings().weight
        hollow = hollow_copy(model)
        assert {p.untyped_storage().nbytes() for p in hollow.parameters()} == {4}
        set_parameters(hollow, model, "bf16")
        assert hollow.lm_head.weight is hollow.get_input_embeddings().weight
        assert [p.device for p in hollow.parameters()] == [p.device for p in model.parameters()]


@needs_accelerate
def test_one_copy_serves_models_that_are_placed_otherwise() -> None:
    """What it takes over goes to its own devices: there its hooks send the inputs."""
    want = logprobs(random_checkpoint(), "bf16")
    with two_devices():
        one, other = dispatched(random_checkpoint()), dispatched(random_checkpoint(), SECOND, FIRST)
        working = WorkingCopy()
        assert_same_bits(logprobs(one, "bf16", working), want)
        assert_same_bits(logprobs(other, "bf16", working), want)
        own = working.of(other.model, "bf16")
        assert own is working.of(one.model, "bf16")
        working.of(other.model, "bf16")
        assert devices_of(own) == devices_of(one.model) == (FIRST, SECOND)
        assert {buffer.device for buffer in own.buffers()} == {FIRST}


@needs_accelerate
def test_logits_come_back_to_the_tokens_whatever_the_root_hook_does() -> None:
    want = logprobs(random_checkpoint(), "fp32")
    with two_devices():
        split = dispatched(random_checkpoint())
        split.model._hf_hook.io_same_device = False
        assert split.model(TOKENS).logits.device == SECOND
        assert_same_bits(logprobs(split, "fp32"), want)


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


def spread_pipeline(pipeline: "Pipeline") -> "Pipeline":
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
        assert again[name] == record[name]
    differences = [files_of(tmp_path / d) for d in ("replayed", "again")]
    assert [f.pop("replay.json") for f in differences]
    assert differences[0] == differences[1]


@needs_accelerate
def test_the_probe_of_a_spread_model_repeats_the_plain_one() -> None:
    """Its few AdamW steps included: gradients come back over both devices."""
    from precision_lib.forensics.forwards import POLICY, Forwards
    from precision_lib.forensics.probe import ProbeSettings, prepare

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


@needs_accelerate
def test_the_commands_with_a_map_write_what_they_write_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine without a GPU ``auto`` places everything on the CPU; hooks are not needed."""
    if torch.cuda.is_available():
        pytest.skip("'auto' takes the GPU here")
    small = ["--num_batches", "1", "--batch_size", "2", "--max_new_tokens", "4"]
    for name, placed in (("plain", []), ("mapped", ["--device-map", "auto"])):
        out = ["--output_dir", str(tmp_path / name)]
        assert cli.main(["freeze", *small, *out, *placed]) == commands.OK
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "mapped")
    configuration = ["--precision_config", "fp32_baseline", "--output_dir", str(tmp_path / "r")]
    frozen = ["--trajectories_dir", str(tmp_path / "plain")]
    assert cli.main(["replay", *configuration, *frozen, "--device-map", "auto"]) == commands.OK
    assert capsys.readouterr().err == ""


def test_the_clock_waits_for_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    places = [torch.device(name) for name in ("cuda:0", "cuda:1", "cuda:0", "cpu")]
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=d) for d in places])
    clock = Clock()
    with clock.running(model, 1):
        assert waited == places[:2]
    assert waited == places[:2] * 2
    assert clock.tokens == 1


def test_every_device_is_named_where_there_are_several() -> None:
    assert software(HOST)["device"] == "cpu"
    assert software(HOST, HOST)["device"] == "cpu, cpu"
