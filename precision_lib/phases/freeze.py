"""Freeze trajectories from end to end, with a progress bar."""

from pathlib import Path

from precision_lib.matrix import get_configuration
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.weights import write_manifests
from precision_lib.reporting.bar import progress_bar
from precision_lib.trajectories.batches import FreezeSettings
from precision_lib.trajectories.freeze import freeze
from precision_lib.trajectories.shards import Manifest


def run_freeze(
    pipeline: Pipeline, settings: FreezeSettings, output_dir: Path, *, resume: bool = False
) -> Manifest:
    """:func:`trajectories.freeze.freeze` with a bar, and manifests of the FP32 weights.

    Raises what that raises.
    """
    with progress_bar("freeze", "batch", settings.num_batches) as bar:
        manifest = freeze(pipeline, settings, output_dir, resume=resume, progress=bar.update)
    write_manifests(pipeline, get_configuration("fp32_baseline"), output_dir)
    return manifest
