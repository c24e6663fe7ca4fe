"""The frozen trajectories that H2 and H3 are measured on.

They are read back from disk, through the verification that a replay goes through, and the record
names their hashes.
"""

from dataclasses import dataclass
from pathlib import Path

from precision_lib.jsonio import Json
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.value_head import ValueHead
from precision_lib.trajectories.batches import FreezeSettings
from precision_lib.trajectories.freeze import freeze, frozen_head
from precision_lib.trajectories.shards import Manifest, read_shards
from precision_lib.trajectories.store import Trajectories


@dataclass(frozen=True)
class Frozen:
    """Trajectories as read from disk.

    Attributes:
        manifest: what they were made from.
        shards: all of them.
        head: the value head of their values.
    """

    manifest: Manifest
    shards: tuple[Trajectories, ...]
    head: ValueHead

    def context(self) -> dict[str, Json]:
        """What the record says about them."""
        return {
            "trajectories": {
                "settings": self.manifest.settings,
                "models": self.manifest.models,
                "shards": {shard.file: shard.sha256 for shard in self.manifest.shards},
            }
        }


def freeze_and_read(pipeline: Pipeline, settings: FreezeSettings, directory: Path) -> Frozen:
    """Freeze into an empty directory and read everything back, verified.

    Raises:
        TrajectoryError: the directory holds trajectories. ValueError: lengths beyond the model.
    """
    manifest = freeze(pipeline, settings, directory)
    return Frozen(manifest, tuple(read_shards(directory)), frozen_head(directory, manifest))
