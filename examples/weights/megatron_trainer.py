"""The manifest of a Megatron trainer, of the tensors that its bridge sends to the engine.

A rank of Megatron holds parts of a tensor. The bridge that feeds the engine joins them, one after
the other, under Hugging Face names; the manifest is made of the same stream.
"""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from precision_lib.weights import manifest


def write_weights_manifest(
    exported: Iterable[tuple[str, Tensor]], config: object, folder: Path, step: int, rank: int
) -> None:
    """Write ``trainer_STEP.json``; every rank must read ``exported`` to its end.

    Args:
        exported: of Megatron Bridge ``bridge.export_hf_weights(model)``, of mbridge
            ``bridge.export_weights(models)``.
        config: the Hugging Face configuration of the model.
    """
    path = folder / f"trainer_{step}.json" if rank == 0 else None
    manifest(exported, path, config=config, step=step, label=f"trainer, step {step}")
