"""Freeze trajectories to a directory: once, resumable, the same bytes however often it was killed.

The hazard. A resumed run with another seed, model or torch release writes batches that do not
belong to the first ones. So a directory says what it was made from, a resumed run has to agree with
every word of it, and a new run refuses a directory that holds anything.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from precision_lib.models.loading import Checkpoint
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.placement import computes_on_cpu, devices_of
from precision_lib.models.prompts import PromptsContext
from precision_lib.models.reward_model import RewardModel
from precision_lib.models.rollout_engine import rollout_engine
from precision_lib.models.value_head import ValueHead, load_value_head, save_value_head
from precision_lib.runtime import deterministic
from precision_lib.trajectories.batches import (
    GOLDEN,
    FreezeSettings,
    check_fits,
    fit_head,
    sample_batch,
    score_batch,
)
from precision_lib.trajectories.prompts import prompts_context
from precision_lib.trajectories.sampling import end_tokens
from precision_lib.trajectories.shards import (
    MANIFEST,
    VALUE_HEAD,
    Manifest,
    TrajectoryError,
    add_shard,
    holds_trajectories,
    read_manifest,
    read_shard,
    remove_leftovers,
    write_manifest,
)

_OTHER_DIRECTORY = "give another --output_dir"


def freeze(
    pipeline: Pipeline,
    settings: FreezeSettings,
    output_dir: Path,
    *,
    resume: bool = False,
    progress: Callable[[int], Any] = lambda _done: None,
) -> Manifest:
    """Write ``settings.num_batches`` shards, their manifest and the value head that was used.

    Args:
        resume: continue what a killed run, or one with fewer batches, left in ``output_dir``;
            an empty directory is begun.
        progress: called with the number of batches that became available.

    Raises:
        TrajectoryError: the directory holds trajectories and ``resume`` is off, or those of other
            settings, models or software; nothing in it is touched then.
        ValueError: a length beyond the model's positions. OSError: it cannot be written to.
    """
    check_fits(pipeline.policy, settings)
    native = settings.rollout == GOLDEN or not computes_on_cpu(*pipeline.models)
    with deterministic(settings.seed, native_products=native):
        manifest = _begin(pipeline, settings, output_dir, resume)
        remove_leftovers(output_dir)
        progress(len(manifest.shards))
        head = frozen_head(output_dir, manifest) if manifest.shards else pipeline.value_head
        drawing = _drawing(pipeline, settings.rollout)
        for index in range(len(manifest.shards), settings.num_batches):
            sampled = sample_batch(drawing, settings, index)
            if head is None:
                head = fit_head(pipeline, sampled)
            if index == 0:
                manifest = _keep_head(output_dir, manifest, head)
            trajectories = score_batch(pipeline, head, sampled)
            rows = sampled.rows(pipeline.policy.model)
            manifest = add_shard(output_dir, manifest, trajectories, rows)
            progress(1)
    return manifest


def _drawing(pipeline: Pipeline, rollout: str) -> Pipeline:
    """The pipeline that draws: its policy is the engine, in FP32 the policy itself."""
    if rollout == GOLDEN:
        return pipeline
    engine = rollout_engine(pipeline.policy.model, rollout)
    return replace(pipeline, policy=replace(pipeline.policy, model=engine))


def software(*devices: torch.device) -> dict[str, str | int]:
    """What the last bits of a forward depend on besides the models: versions, devices, threads.

    Each of the policy's ``devices``, at least one, is named.
    """
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": ", ".join(
            torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
            for device in devices
        ),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def model_digests(pipeline: Pipeline) -> dict[str, dict[str, str]]:
    """Role to name and SHA-256 of the models that have been loaded."""
    roles: dict[str, Checkpoint | RewardModel] = {
        "policy": pipeline.policy,
        "reference": pipeline.reference,
        "reward": pipeline.reward,
    }
    return {role: {"name": m.name, "sha256": m.sha256} for role, m in roles.items()}


def check_same_models(manifest: Manifest, pipeline: Pipeline, directory: Path) -> None:
    """Raise TrajectoryError unless ``pipeline`` holds the models the directory was made with."""
    options = {
        "policy": "--model",
        "reference": "--reference-model",
        "reward": "--reward-model",
    }
    for role, given in model_digests(pipeline).items():
        made = manifest.models[role]
        if given["sha256"] != made["sha256"]:
            raise TrajectoryError(
                f"{directory / MANIFEST}: the {role} was {made['name']!r} with SHA-256 "
                f"{made['sha256'][:12]}..., {given['name']!r} has {given['sha256'][:12]}...; give "
                f"that model again ({options[role]}), or freeze with this one into another "
                "directory"
            )


def check_free(directory: Path, *, resume: bool) -> None:
    """Raise TrajectoryError when a new run would write where trajectories are."""
    if holds_trajectories(directory) and not resume:
        raise TrajectoryError(
            f"{directory} holds frozen trajectories already; continue them with --resume, or "
            f"{_OTHER_DIRECTORY}"
        )


def _begin(pipeline: Pipeline, settings: FreezeSettings, directory: Path, resume: bool) -> Manifest:
    """The manifest to continue from; written when it is new or asks for more batches."""
    check_free(directory, resume=resume)
    if holds_trajectories(directory):
        return _continue(pipeline, settings, directory)
    asked = asdict(settings)
    del asked["num_batches"], asked["rollout"]  # fields of the manifest
    asked |= {
        "temperature": 1.0,
        "prompts": _prompts(pipeline),
        "end_tokens": _ends(pipeline, settings),
    }
    made_with = software(*devices_of(pipeline.policy.model))
    digests = model_digests(pipeline)
    return Manifest(asked, digests, made_with, settings.num_batches, settings.rollout)


def _prompts(pipeline: Pipeline) -> str | PromptsContext:
    """The shipped prompts by their name, others with their digest."""
    context = prompts_context(pipeline.policy)
    return context if pipeline.policy.prompts else str(context["name"])


def _ends(pipeline: Pipeline, settings: FreezeSettings) -> list[int]:
    return [] if settings.ignore_eos else sorted(end_tokens(pipeline.policy))


def _continue(pipeline: Pipeline, settings: FreezeSettings, directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    check_same_models(manifest, pipeline, directory)
    asked = asdict(settings) | {
        "end_tokens": _ends(pipeline, settings),
        "prompts": _prompts(pipeline),
    }
    if not manifest.rollout:
        raise TrajectoryError(
            f"{directory / MANIFEST}: its release did not keep the sampler's log-probs, and some "
            f"shards would have them and others not; {_OTHER_DIRECTORY}"
        )
    settings_now = manifest.settings | {
        "num_batches": settings.num_batches,
        "rollout": manifest.rollout,
    }
    for name, wanted in asked.items():
        if settings_now.get(name) != wanted:
            raise TrajectoryError(
                f"{directory / MANIFEST}: made with {name} = {settings_now.get(name)}, asked for "
                f"{wanted}; resume with the same settings, or {_OTHER_DIRECTORY}"
            )
    running = software(*devices_of(pipeline.policy.model))
    for name, made in manifest.made_with.items():
        if running.get(name) != made:
            raise TrajectoryError(
                f"{directory / MANIFEST}: made with {name} = {made}, this is {running.get(name)}, "
                f"and the last bits may differ; resume where it was begun, or {_OTHER_DIRECTORY}"
            )
    if settings.num_batches < len(manifest.shards):
        raise TrajectoryError(
            f"{directory} holds {len(manifest.shards)} batches, {settings.num_batches} were asked "
            f"for; ask for as many or more, or {_OTHER_DIRECTORY}"
        )
    if "value_head" in manifest.models:
        _check_head(pipeline, directory, manifest)
    for shard in manifest.shards:  # nothing is added to what is broken
        read_shard(directory, shard)
    if manifest.num_batches != settings.num_batches:
        manifest = replace(manifest, num_batches=settings.num_batches)
        write_manifest(directory, manifest)
    return manifest


def _check_head(pipeline: Pipeline, directory: Path, manifest: Manifest) -> None:
    frozen = frozen_head(directory, manifest)
    if pipeline.value_head is not None and pipeline.value_head.sha256 != frozen.sha256:
        raise TrajectoryError(
            f"{directory / VALUE_HEAD}: made with another value head than the policy now has; "
            f"{_OTHER_DIRECTORY}"
        )


def _keep_head(directory: Path, manifest: Manifest, head: ValueHead) -> Manifest:
    """Write the value head, then the manifest without a shard that names it."""
    save_value_head(head, directory / VALUE_HEAD)
    models = manifest.models | {"value_head": {"name": VALUE_HEAD, "sha256": head.sha256}}
    manifest = replace(manifest, models=models)
    write_manifest(directory, manifest)
    return manifest


def frozen_head(directory: Path, manifest: Manifest) -> ValueHead:
    """The value head that the golden values were made with.

    Raises:
        TrajectoryError: missing, unreadable, or not the one that the manifest names.
    """
    path = directory / VALUE_HEAD
    advice = "copy the directory again, or freeze again into another one"
    try:
        head = load_value_head(path)
    except Exception as error:  # file system, safetensors and its own checks differ in kind
        raise TrajectoryError(f"{path} cannot be read ({error}); {advice}") from error
    wanted = manifest.models["value_head"]["sha256"]
    if head.sha256 != wanted:
        raise TrajectoryError(
            f"{path} has SHA-256 {head.sha256[:12]}..., {MANIFEST} says {wanted[:12]}...: it was "
            f"altered or exchanged; {advice}"
        )
    return head
