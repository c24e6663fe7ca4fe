"""Write a dump from a training loop of one's own."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.jsonio import write_bytes
from precision_lib.mismatch.schema import COLUMNS, Array

#: The mask that padding makes, of these columns.
_MASKS = {"rollout_logprobs": "response_mask", "prompt_ids": "prompt_mask"}


def save_dump(
    path: Path | str, claimed: Mapping[str, object] | None = None, **columns: Any
) -> None:
    """Write the columns of :data:`schema.COLUMNS` as npz, whole or not at all.

    Args:
        claimed: what you believe: ``rollout_dtype``, ``trainer_dtype``, ``temperature``, ...
        columns: arrays, or tensors on the CPU in a format that numpy has; or lists of rows of
            different lengths, which are padded with zeros. Where no mask is given for them,
            ``response_mask`` and ``prompt_mask`` are made.

    Raises:
        ValueError: a column that the schema does not have, or one without a value.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise ValueError(f"no such column: {', '.join(unknown)}; known: {', '.join(COLUMNS)}")
    arrays: dict[str, Array] = {}
    for name, value in columns.items():
        if isinstance(value, list) and not any(np.size(row) for row in value):
            raise ValueError(f"column {name} holds no value; save rows that have a token")
        if not isinstance(value, list) or np.ndim(value[0]) == 0:
            arrays[name] = np.asarray(value)
            continue
        arrays[name], mask = _padded(value)
        if name in _MASKS and _MASKS[name] not in columns:
            arrays[_MASKS[name]] = mask
    buffer = io.BytesIO()
    np.savez_compressed(buffer, claimed=json.dumps(claimed or {}), **arrays)  # type: ignore[arg-type]
    write_bytes(Path(path), buffer.getvalue())


def _padded(rows: list[Any]) -> tuple[Array, Array]:
    """Rows as one array with zeros behind the short ones, and where they are real."""
    flat = [np.asarray(row) for row in rows]
    lengths = np.array([len(row) for row in flat])
    mask = np.arange(lengths.max()) < lengths[:, None]
    values = np.zeros(mask.shape, np.result_type(*{row.dtype for row in flat if len(row)}))
    values[mask] = np.concatenate([row.astype(values.dtype) for row in flat])
    return values, mask
