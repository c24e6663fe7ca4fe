"""Columns of a small healthy dump, and the file kinds that hold them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.mismatch.saving import save_dump

CLAIMED = {"rollout_dtype": "bf16", "trainer_dtype": "bf16", "temperature": 1.0}


def columns(rows: int = 16, length: int = 32, seed: int = 0) -> dict[str, Any]:
    """Padded arrays [rows, length] of bf16 noise; the last two slots of odd rows are masked."""
    random = np.random.default_rng(seed)
    rollout = np.minimum(-random.gamma(0.5, 2, (rows, length)), -1e-4)
    noise = 0.05 * -np.expm1(rollout) * random.standard_normal(rollout.shape)
    mask = np.ones(rollout.shape, bool)
    mask[1::2, -2:] = False
    return {
        "token_ids": random.integers(0, 1000, rollout.shape),
        "response_mask": mask,
        "rollout_logprobs": rollout.astype(np.float32),
        "trainer_logprobs": (rollout + noise).astype(np.float32),
    }


def npz(path: Path, **changes: Any) -> Path:
    """A dump as npz; a column that is changed to None is left out."""
    values = {**columns(), **changes}
    save_dump(path, CLAIMED, **{k: v for k, v in values.items() if v is not None})
    return path


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row_dictionaries(values: dict[str, Any]) -> list[dict[str, Any]]:
    """One dictionary of lists a row."""
    count = len(values["rollout_logprobs"])
    return [{name: value[i].tolist() for name, value in values.items()} for i in range(count)]
