"""Freeze trajectories from end to end, with a progress bar on a terminal."""

from pathlib import Path

from tqdm import tqdm

from precision_lib.models.pipeline import Pipeline
from precision_lib.trajectories.batches import FreezeSettings
from precision_lib.trajectories.freeze import freeze
from precision_lib.trajectories.shards import Manifest


def run_freeze(
    pipeline: Pipeline, settings: FreezeSettings, output_dir: Path, *, resume: bool = False
) -> Manifest:
    """:func:`trajectories.freeze.freeze` with a bar; raises what that raises."""
    with tqdm(total=settings.num_batches, disable=None, unit="batch", desc="freeze") as bar:
        return freeze(pipeline, settings, output_dir, resume=resume, progress=bar.update)
