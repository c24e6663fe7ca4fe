"""What ``replay.json`` holds; its keys, and their order, are those of the fields.

A quantity is a name of :data:`precision_lib.trajectories.comparison.QUANTITIES`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from precision_lib.jsonio import Json, to_plain, write_json

SCHEMA = "precision-forensics/replay/1"
RECORD = "replay.json"


@dataclass(frozen=True)
class Errors:
    """Errors of ``n`` numbers that are finite; None where there is none of them."""

    n: int
    nonfinite: int
    mean: float | None
    rms: float | None


@dataclass(frozen=True)
class AllErrors(Errors):
    """Of a quantity, over all sequences; ``max_abs`` is the largest magnitude."""

    max_abs: float | None
    unit: str


@dataclass(frozen=True)
class Bin:
    """Errors of the response positions ``first`` to ``last``, counted from 1."""

    first: int
    last: int
    n: int
    nonfinite: int
    mean: float | None
    rms: float | None


@dataclass(frozen=True)
class SummedBin(Bin):
    """Of a quantity whose errors add up along the sequence: also of the sums up to there."""

    accumulated: Errors


Summary = Mapping[str, AllErrors]


@dataclass(frozen=True)
class NoiseFloor:
    """What differs although no format does, quantity by quantity, on the first shard."""

    sequences: int
    response_tokens: int
    rows_per_forward: Mapping[str, int]
    repeated: Summary
    reversed: Summary
    rebatched: Summary
    fp32_rebatched: Summary
    fp32_against_frozen: Summary


@dataclass(frozen=True)
class GoldenRepeats:
    """Whether an all-FP32 replay is bitwise equal to the frozen figures, and whether it must be.

    Attributes:
        applies: the configuration is FP32 throughout. bitwise_equal: by quantity.
        differs: what is not as in the frozen run: nothing, where it must be equal.
    """

    applies: bool
    required: bool
    bitwise_equal: Mapping[str, bool] | None
    differs: list[str]


@dataclass(frozen=True)
class Figure:
    """A metric without an interval."""

    value: float
    unit: str


@dataclass(frozen=True)
class RolloutMismatch:
    """H5's metrics of the replayed policy beside the sampler, whose format it names."""

    format: str
    sequences: int
    response_tokens: int
    metrics: Mapping[str, Figure]


@dataclass(frozen=True)
class NoMismatch:
    """Why there are none."""

    format: None
    reason: str


@dataclass(frozen=True)
class Throughput:
    """The policy's scoring against its bare forward: medians over the timed runs."""

    tokens_per_second: float
    forward_tokens_per_second: float
    ratio: float
    tokens: int
    runs: int


@dataclass(frozen=True)
class Origin:
    """What was replayed: how much of it, and what the manifest says of its making."""

    directory: Path
    complete: bool
    shards: int
    sequences: int
    response_tokens: int
    rows_per_forward: list[int]
    settings: Mapping[str, Json]
    models: Mapping[str, Mapping[str, str]]
    made_with: Mapping[str, str | int]


@dataclass(frozen=True)
class ReplayRecord:
    """A replay. ``configuration`` has its name and its formats by component."""

    noise_floor: NoiseFloor
    golden_repeats: GoldenRepeats
    schema: str
    configuration: Mapping[str, str]
    observed_formats: Mapping[str, str]
    summary: Summary
    by_position: Mapping[str, list[Bin]]
    rollout_mismatch: RolloutMismatch | NoMismatch
    throughput: Throughput
    made_with: Mapping[str, str | int]
    trajectories: Origin


def write_record(output_dir: Path, record: ReplayRecord) -> None:
    """Write ``replay.json``, whole or not at all."""
    write_json(output_dir / RECORD, to_plain(asdict(record)))
