"""The manifest of an FSDP 2 trainer: each rank joins one tensor at a time, rank 0 writes."""

from pathlib import Path

import torch
import torch.distributed as dist

from precision_lib.weights import manifest


def write_weights_manifest(model: torch.nn.Module, folder: Path, step: int) -> None:
    """Write ``trainer_STEP.json`` below ``folder``; every rank must call it.

    The parameters are DTensors. ``manifest`` gathers one whole tensor after the other.
    """
    writes = not dist.is_initialized() or dist.get_rank() == 0
    path = folder / f"trainer_{step}.json" if writes else None
    manifest(model, path, step=step, label=f"trainer, step {step}")
