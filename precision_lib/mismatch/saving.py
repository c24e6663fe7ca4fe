"""Write a dump from a training loop of one's own."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.jsonio import write_bytes
from precision_lib.mismatch.schema import COLUMNS


def save_dump(path: Path | str, claimed: dict[str, Any] | None = None, **columns: Any) -> None:
    """Write the columns of :data:`schema.COLUMNS` as npz, whole or not at all.

    Args:
        claimed: what you believe: ``rollout_dtype``, ``trainer_dtype``, ``temperature``, ...
        columns: arrays, or tensors on the CPU in a format that numpy has.

    Raises:
        ValueError: a column that the schema does not have.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise ValueError(f"no such column: {', '.join(unknown)}; known: {', '.join(COLUMNS)}")
    arrays = {name: np.asarray(value) for name, value in columns.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, claimed=json.dumps(claimed or {}), **arrays)  # type: ignore[arg-type]
    write_bytes(Path(path), buffer.getvalue())
