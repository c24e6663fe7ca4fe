"""The directory of frozen trajectories: shards, their hashes, and a manifest.

The hazard. A file that was cut, altered, exchanged or left over from another run must not be
measured. So a shard is written whole under a temporary name, synced and renamed, the manifest
follows in the same way, and only what the manifest names by its SHA-256 is read. Resuming writes
again what a kill left without a manifest. Batches are read one at a time.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from precision_lib.jsonio import Json, write_bytes, write_json
from precision_lib.trajectories.store import Trajectories, from_tensors, to_tensors

SCHEMA = "precision-forensics/trajectories/2"
#: The one of before has no log-probs of the sampler.
READABLE = ("precision-forensics/trajectories/1", SCHEMA)
MANIFEST, VALUE_HEAD = "manifest.json", "value_head.safetensors"


class TrajectoryError(RuntimeError):
    """Frozen trajectories cannot be used or made; the message names the file and what to do."""


@dataclass(frozen=True)
class Shard:
    """One file of the manifest.

    Attributes:
        file: its name. sha256, size: of its bytes.
        sequences, response_tokens: how many it holds.
        rows: sequences per forward of the golden figures, without which FP32 does not repeat.
    """

    file: str
    sha256: str
    size: int
    sequences: int
    response_tokens: int
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What a directory holds and what it was made from.

    Attributes:
        settings: of sampling and prompts; each batch depends on them and its number alone.
        models: role to {"name", "sha256"}.
        made_with: versions and device, on which the last bits depend.
        num_batches: how many shards the run was to make.
        rollout: format of the sampler, whose log-probs are kept; "" in files of before.
        shards: those that are there, a valid beginning at every moment.
    """

    settings: dict[str, Json]
    models: dict[str, dict[str, str]]
    made_with: dict[str, str | int]
    num_batches: int
    rollout: str = ""
    shards: tuple[Shard, ...] = field(default=())

    @property
    def complete(self) -> bool:
        """True once every batch is there."""
        return len(self.shards) == self.num_batches


def shard_name(index: int) -> str:
    """File name of the shard of a batch."""
    return f"shard-{index:05d}.safetensors"


def holds_trajectories(directory: Path) -> bool:
    """True when there is a manifest or a shard, whole or not."""
    return (directory / MANIFEST).exists() or any(directory.glob("shard-*.safetensors"))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace the manifest, atomically."""
    content = {"schema": SCHEMA} | asdict(manifest)
    write_json(directory / MANIFEST, content | {"sha256": _digest(content)})


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a directory, checked.

    Raises:
        TrajectoryError: none there, not JSON, altered, or of another schema.
    """
    path = directory / MANIFEST
    again = "freeze again into another directory"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrajectoryError(
            f"{directory} holds no {MANIFEST}, so no frozen trajectories; make them with "
            f"`precision-forensics freeze --output_dir {directory}`, or give their directory"
        ) from None
    except (OSError, ValueError) as error:
        raise TrajectoryError(f"{path} cannot be read ({error}); {again}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema not in READABLE:
        raise TrajectoryError(f"{path} has schema {schema!r}, expected {SCHEMA!r}; {again}")
    if content.pop("sha256", None) != _digest(content):
        raise TrajectoryError(f"{path} was altered: its SHA-256 does not fit it; {again}")
    shards = tuple(Shard(**entry) for entry in content.pop("shards"))
    content.pop("schema")
    return Manifest(**content, shards=shards)


def _digest(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def add_shard(
    directory: Path, manifest: Manifest, trajectories: Trajectories, rows: int
) -> Manifest:
    """Write the next shard, then the manifest that names it; the new manifest.

    Raises:
        ValueError: when the trajectories are not what they should be. OSError: a full disk.
    """
    content = save(to_tensors(trajectories))
    shard = Shard(
        file=shard_name(len(manifest.shards)),
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        sequences=len(trajectories.tokens),
        response_tokens=int(trajectories.response_lengths.sum()),
        rows=rows,
    )
    write_bytes(directory / shard.file, content)
    manifest = replace(manifest, shards=(*manifest.shards, shard))
    write_manifest(directory, manifest)
    return manifest


def read_shard(directory: Path, shard: Shard) -> Trajectories:
    """One shard, after its hash and every check of :func:`store.from_tensors`.

    Raises:
        TrajectoryError: missing, cut, altered, or not what a shard is.
    """
    path = directory / shard.file
    advice = "copy the directory again, or freeze again into another one"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrajectoryError(
            f"{path}: {error.strerror}, but {MANIFEST} names it; {advice}"
        ) from None
    if len(content) != shard.size:
        raise TrajectoryError(
            f"{path} has {len(content)} bytes, {MANIFEST} says {shard.size}: it was cut or "
            f"replaced; {advice}"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != shard.sha256:
        raise TrajectoryError(
            f"{path} has SHA-256 {digest[:12]}..., {MANIFEST} says {shard.sha256[:12]}...: it was "
            f"altered or exchanged; {advice}"
        )
    try:
        trajectories = from_tensors(load(content))
    except (SafetensorError, ValueError) as error:
        raise TrajectoryError(f"{path} is no shard of trajectories: {error}; {advice}") from None
    counts = len(trajectories.tokens), int(trajectories.response_lengths.sum())
    if counts != (shard.sequences, shard.response_tokens):
        raise TrajectoryError(
            f"{path} holds {counts[0]} sequences with {counts[1]} response tokens, {MANIFEST} says "
            f"{shard.sequences} with {shard.response_tokens}; {advice}"
        )
    return trajectories


def read_shards(directory: Path) -> Iterator[Trajectories]:
    """The shards one after the other; only one is in memory.

    Raises:
        TrajectoryError: as :func:`read_manifest` and :func:`read_shard`.
    """
    for shard in read_manifest(directory).shards:
        yield read_shard(directory, shard)


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files and directories that a killed freeze left."""
    for name in (MANIFEST, VALUE_HEAD, "shard-*"):
        for path in directory.glob(f".{name}.*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
