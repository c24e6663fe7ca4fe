"""Replay frozen trajectories under a configuration: the same tokens, nothing but formats differs.

The hazards. Replayed log-probs differ from the frozen ones by the format, and by batch shape, code
path and device too; without the size of the latter the former means nothing. So the record begins
with the noise floor: the configuration against itself, repeated, in reversed order, in other
micro-batches (its batch variance), and the FP32 path against the frozen figures, in their
micro-batches and in others. On the machine and in the batch shape
of the frozen run an FP32 replay must be bitwise equal; that is checked, not assumed.

Memory: the FP32 originals and one working copy at a time; policy, reference and reward model take
their turns over a shard. An FP32 component runs the original itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from precision_lib.jsonio import write_bytes
from precision_lib.matrix import REQUIRED, PrecisionConfig
from precision_lib.metrics.measure import Array
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.placement import computes_on_cpu, devices_of
from precision_lib.runtime import deterministic
from precision_lib.scoring.micro import Micro, micro_batches
from precision_lib.trajectories.batches import GOLDEN
from precision_lib.trajectories.comparison import (
    QUANTITIES,
    Comparison,
    ReplayFigures,
    bitwise_equal,
    errors,
    golden_figures,
)
from precision_lib.trajectories.freeze import check_same_models, frozen_head, software
from precision_lib.trajectories.replay_record import (
    RECORD,
    SCHEMA,
    GoldenRepeats,
    NoiseFloor,
    Origin,
    ReplayRecord,
    Summary,
    Throughput,
    write_record,
)
from precision_lib.trajectories.replayer import Replayer
from precision_lib.trajectories.rollout_mismatch import mismatch_sums, rollout_mismatch
from precision_lib.trajectories.shards import (
    Manifest,
    Shard,
    TrajectoryError,
    read_manifest,
    read_shard,
)
from precision_lib.trajectories.store import Trajectories

#: Shards on which the bare forward is timed beside the replay, spread evenly.
TIMED_SHARDS = 8


class NothingToReplayError(TrajectoryError):
    """The directory holds no sequence, so nothing would be compared."""


def replay(
    pipeline: Pipeline,
    configuration: PrecisionConfig,
    trajectories_dir: Path,
    output_dir: Path,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda _done: None,
) -> ReplayRecord:
    """Score every shard under ``configuration``, write what differs from frozen FP32; the record.

    Writes ``replay.json`` and, per shard, ``differences-NNNNN.safetensors``: quantity to errors
    [N, L-1] in FP32 (the reward's [N]), replayed minus frozen, and the shard's mask.

    Args:
        batch_size: sequences per forward; None for those of the frozen run.
        seed: of the global generators, which a model in eval mode does not draw from.
        progress: called with 1 after each shard.

    Raises:
        TrajectoryError: broken or missing trajectories, or made with other models.
        NothingToReplayError: no sequence. ValueError: ``batch_size`` below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    manifest = _manifest_to_replay(pipeline, trajectories_dir)
    replayer = Replayer(pipeline, configuration, frozen_head(trajectories_dir, manifest))
    with deterministic(seed, native_products=not computes_on_cpu(*pipeline.models)):
        floor = noise_floor(replayer, trajectories_dir, manifest, batch_size)
        for shard in manifest.shards:  # an earlier replay is worth more than half of this one
            read_shard(trajectories_dir, shard)
        _clear(output_dir)
        compared = _compare(replayer, trajectories_dir, manifest, output_dir, batch_size, progress)
        this_software = software(*devices_of(pipeline.policy.model))
    record = ReplayRecord(
        noise_floor=floor,
        golden_repeats=_golden_repeats(
            configuration, manifest, batch_size, compared.equal, this_software
        ),
        schema=SCHEMA,
        configuration={"name": configuration.name} | configuration.components,
        observed_formats=replayer.observed_formats(),
        summary=compared.errors.summary(),
        by_position=compared.errors.by_position(),
        rollout_mismatch=rollout_mismatch(manifest.rollout, compared.mismatch),
        throughput=_throughput(replayer),
        made_with=this_software,
        trajectories=_origin(trajectories_dir, manifest, batch_size),
    )
    write_record(output_dir, record)
    return record


def _manifest_to_replay(pipeline: Pipeline, directory: Path) -> Manifest:
    """The manifest of trajectories that ``pipeline`` can be compared with, at least one."""
    manifest = read_manifest(directory)
    if not manifest.shards:
        raise NothingToReplayError(
            f"{directory} holds no sequence yet, nothing would be compared; continue it "
            "with `precision-forensics freeze --resume`"
        )
    check_same_models(manifest, pipeline, directory)
    return manifest


@dataclass
class _Compared:
    """What was found over the shards so far.

    Attributes:
        errors: against the frozen figures.
        equal: quantity to whether all of it is bitwise equal.
        mismatch: per shard the sums of the replayed log-prob minus what the sampler reported.
    """

    errors: Comparison = field(default_factory=Comparison)
    equal: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(QUANTITIES, True))
    mismatch: list[dict[str, Array]] = field(default_factory=list)


def _compare(
    replayer: Replayer,
    trajectories_dir: Path,
    manifest: Manifest,
    output_dir: Path,
    batch_size: int | None,
    progress: Callable[[int], Any],
) -> _Compared:
    compared, timed = _Compared(), _evenly(len(manifest.shards), TIMED_SHARDS)
    for index, shard in enumerate(manifest.shards):
        frozen = read_shard(trajectories_dir, shard)
        replayed = replayer.run(frozen, _micro(shard, batch_size), timed=index in timed)
        golden = golden_figures(frozen)
        error = errors(replayed, golden, frozen.mask)
        compared.errors.add(error, frozen)
        for name, same in bitwise_equal(replayed, golden).items():
            compared.equal[name] &= same
        if frozen.rollout_logprobs is not None:
            compared.mismatch.append(mismatch_sums(replayed.policy_logprob, frozen))
        _write_differences(output_dir, index, error, frozen)
        progress(1)
    return compared


def _origin(directory: Path, manifest: Manifest, batch_size: int | None) -> Origin:
    shards = manifest.shards
    return Origin(
        directory=directory,
        complete=manifest.complete,
        shards=len(shards),
        sequences=sum(s.sequences for s in shards),
        response_tokens=sum(s.response_tokens for s in shards),
        rows_per_forward=sorted({_rows(s, batch_size) for s in shards}),
        settings=manifest.settings,
        models=manifest.models,
        made_with=manifest.made_with,
    )


def _rows(shard: Shard, batch_size: int | None) -> int:
    return min(shard.sequences, shard.rows if batch_size is None else batch_size)


def _micro(shard: Shard, batch_size: int | None) -> Micro:
    return micro_batches(_rows(shard, batch_size), shard.sequences)


def _evenly(count: int, most: int) -> set[int]:
    """At most ``most`` numbers below ``count``, spread evenly."""
    return {i * count // min(count, most) for i in range(min(count, most))}


def noise_floor(
    replayer: Replayer, directory: Path, manifest: Manifest, batch_size: int | None
) -> NoiseFloor:
    """What differs although no format does, on the first shard; 0 is a possible answer.

    Expected from theory: exactly 0 where every product computes a row the same whatever stands in
    the other rows, which a CPU does for all but products with a single output (value head, reward
    head). On a GPU the micro-batch chooses the kernel: there ``rebatched`` of a bf16 configuration
    is as large as its error. That says nothing about the uncertainty of the error, which is
    measured against FP32: ``fp32_rebatched`` does. ``reversed`` is not 0 there either where the
    last micro-batch is smaller than the others. Its runs are timed too.
    """
    frozen, shard = read_shard(directory, manifest.shards[0]), manifest.shards[0]
    micro = _micro(shard, batch_size)
    first = replayer.run(frozen, micro, timed=True)
    other = _other_micro(micro, shard.sequences)
    runs: dict[str, tuple[ReplayFigures, ReplayFigures]] = {
        "repeated": (replayer.run(frozen, micro, timed=True), first),
        "reversed": (replayer.run(frozen, replace(micro, order=micro.order.flip(0))), first),
        "rebatched": (replayer.run(frozen, other), first),
    }
    full = PrecisionConfig("golden", *([GOLDEN] * len(REQUIRED)))
    golden, truth = Replayer(replayer.pipeline, full, replayer.head), golden_figures(frozen)
    runs["fp32_rebatched"] = golden.run(frozen, other), truth
    runs["fp32_against_frozen"] = golden.run(frozen, micro), truth
    return NoiseFloor(
        sequences=shard.sequences,
        response_tokens=shard.response_tokens,
        rows_per_forward={"usual": micro.rows, "rebatched": other.rows},
        **{name: _floor(*pair, frozen) for name, pair in runs.items()},
    )


def _other_micro(micro: Micro, sequences: int) -> Micro:
    """Micro-batches of a third of the rows; of two where there was one, a lone sequence twice."""
    if micro.rows > 1:
        return replace(micro, rows=max(1, micro.rows // 3))
    return Micro(2, micro.order if sequences > 1 else torch.zeros(2, dtype=torch.int64))


def _floor(got: ReplayFigures, want: ReplayFigures, frozen: Trajectories) -> Summary:
    comparison = Comparison()
    comparison.add(errors(got, want, frozen.mask), frozen)
    return comparison.summary()


def _golden_repeats(
    configuration: PrecisionConfig,
    manifest: Manifest,
    batch_size: int | None,
    equal: dict[str, bool],
    this_software: Mapping[str, str | int],
) -> GoldenRepeats:
    """It must repeat where nothing differs: versions, device, threads and rows per forward."""
    if set(configuration.components.values()) != {GOLDEN}:
        return GoldenRepeats(False, required=False, bitwise_equal=None, differs=[])
    differs = [name for name, made in manifest.made_with.items() if this_software.get(name) != made]
    if any(_rows(s, batch_size) != s.rows for s in manifest.shards):
        differs.append("batch_size")
    return GoldenRepeats(True, required=not differs, bitwise_equal=equal, differs=differs)


def _throughput(replayer: Replayer) -> Throughput:
    scored, bare, runs = replayer.replayed.rate, replayer.plain.rate, len(replayer.replayed.rates)
    return Throughput(scored, bare, scored / bare, replayer.replayed.tokens, runs)


def _write_differences(
    output_dir: Path, index: int, error: dict[str, Tensor], frozen: Trajectories
) -> None:
    content = {name: x.float().contiguous() for name, x in error.items()} | {"mask": frozen.mask}
    write_bytes(output_dir / f"differences-{index:05d}.safetensors", save(content))


def _clear(output_dir: Path) -> None:
    """Remove an earlier replay: its record would describe differences that are replaced."""
    for path in [output_dir / RECORD, *output_dir.glob("differences-*.safetensors")]:
        path.unlink(missing_ok=True)
