"""Replay frozen trajectories under a configuration, from end to end.

The hazard. A replay of an empty directory compares nothing and would end as if all were well.
"""

from pathlib import Path

from precision_lib.forensics.statistics import NothingComparedError
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.weights import write_manifests
from precision_lib.reporting.bar import progress_bar
from precision_lib.trajectories.replay import NothingToReplayError, replay
from precision_lib.trajectories.replay_record import ReplayRecord
from precision_lib.trajectories.shards import read_manifest


def run_replay(
    pipeline: Pipeline,
    configuration: PrecisionConfig,
    trajectories_dir: Path,
    output_dir: Path,
    batch_size: int | None = None,
    seed: int = 0,
) -> ReplayRecord:
    """:func:`trajectories.replay.replay` with a bar, manifests of the weights; its record.

    Raises:
        NothingComparedError: the directory holds no sequence. Otherwise what that raises.
    """
    shards = len(read_manifest(trajectories_dir).shards)
    name = f"replay {configuration.name}"
    try:
        with progress_bar(name, "shard", shards) as bar:
            record = replay(
                pipeline,
                configuration,
                trajectories_dir,
                output_dir,
                batch_size,
                seed,
                bar.update,
            )
    except NothingToReplayError as error:
        raise NothingComparedError(str(error)) from None
    write_manifests(pipeline, configuration, output_dir)
    return record


def golden_failure(record: ReplayRecord) -> str | None:
    """Why the figures of a replay mean nothing, or None: FP32 had to repeat and did not."""
    repeats = record.golden_repeats
    wrong = [name for name, same in (repeats.bitwise_equal or {}).items() if not same]
    if not repeats.required or not wrong:
        return None
    return (
        f"the FP32 replay differs from the frozen figures in {', '.join(wrong)}, on the same "
        "versions, device and batch shape; was it frozen on another processor? freeze again here"
    )
