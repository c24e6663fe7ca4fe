"""The record of an attribution: where the error of a log-prob is born, and in what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from precision_lib.attribution.breakdown import Breakdown
from precision_lib.forensics.statistics import Metric
from precision_lib.jsonio import FLAT, load_object, write_json
from precision_lib.record.codec import ShapeError, decode, encode
from precision_lib.record.context import Context

SCHEMA = "precision-forensics attribution 1"
_HOW = "`precision-forensics attribute` writes one"


@dataclass(frozen=True)
class Formats:
    """The configuration whose policy was tested; ``components`` to their formats."""

    name: str
    components: Mapping[str, str] = field(metadata=FLAT)


@dataclass(frozen=True)
class Sequences:
    """What was measured on, see ``phases.attribute.AttributionSettings``."""

    num_prompts: int
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Architecture:
    """The class of the model, and whether its kinds of modules are known."""

    name: str
    kinds_known: bool


@dataclass(frozen=True)
class AttributionRecord:
    """What one attribution found.

    Attributes:
        planted_fault: name of the fault in a model that is FP32 otherwise.
        power: error power of the whole, nats squared.
        kinds: by kind of module; None for an architecture whose modules are not known.
        layers: by layer, with what lies outside of the layers.
        closure: share of the power that escaped the places.
    """

    context: Context
    planted_fault: str | None
    configuration: Formats
    settings: Sequences
    architecture: Architecture
    power: Metric
    kinds: Breakdown | None
    layers: Breakdown
    closure: float


def write_attribution_record(path: Path, record: AttributionRecord) -> None:
    """Write it as JSON."""
    write_json(path, {"schema": SCHEMA} | encode(record))


def load_attribution(path: Path) -> AttributionRecord:
    """Read one.

    Raises:
        ValueError: the file is of something else, or damaged; the message says what to do.
    """
    plain = load_object(path, "attribution", _HOW)
    if plain.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path} is no record of an attribution ({SCHEMA}); {_HOW}")
    try:
        return decode(AttributionRecord, plain)
    except ShapeError as error:
        raise ValueError(f"{path} is damaged ({error}); make it again: {_HOW}") from None
