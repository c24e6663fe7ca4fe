"""How much a sweep trains: the whole of it, or a first look in a directory of its own."""

from pathlib import Path
from typing import Any

from precision_lib.training.settings import PPOSettings

SEEDS = (0, 1, 2)
WHOLE, QUICK = Path("results/sweep"), Path("results/sweep_quick")
QUICK_SEEDS = (0, 1)


def sweep_settings(*, quick: bool = False, **changes: Any) -> PPOSettings:
    """Settings of each run but for its seed, with ``changes``; a first look is three tiny steps."""
    if not quick:
        return PPOSettings(**changes)
    tiny = {
        "max_steps": 3,
        "batch_size": 8,
        "max_new_tokens": 8,
        "checkpoint_every": 2,
        "diagnostic_sequences": 2,
        "evaluation_sequences": 32,
    }
    return PPOSettings(**(tiny | changes))
