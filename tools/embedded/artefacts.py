"""Writing the embedded model's files, and checkpoints of the training that makes them.

The hazard is half a file. A model that was being written when the process died looks like a model;
so everything is written under a temporary name beside its destination and renamed when complete.
Nothing is pickled: tensors are safetensors, everything else is JSON.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """Where training is saved, every how many steps, and which training it is (`identity`)."""

    path: Path
    identity: str
    every: int


def save(
    checkpoint: Checkpoint,
    parameters: dict[str, Tensor],
    state: dict[str, Tensor],
    *,
    step: int,
    seconds: float,
) -> None:
    """Write parameters, optimizer state and position of the training, replacing the last one."""
    from safetensors.torch import save_file

    tensors = {f"parameter/{name}": p.detach() for name, p in parameters.items()} | state
    metadata = {"identity": checkpoint.identity, "step": str(step), "seconds": repr(seconds)}
    temporary = checkpoint.path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata)
    temporary.replace(checkpoint.path)


@torch.no_grad()
def restore(
    checkpoint: Checkpoint, parameters: dict[str, Tensor], state: dict[str, Tensor]
) -> tuple[int, float]:
    """Load the checkpoint in place; returns finished steps and seconds, (0, 0.0) without one.

    Raises ValueError when the checkpoint belongs to another training.
    """
    from safetensors import safe_open

    if not checkpoint.path.exists():
        return 0, 0.0
    with safe_open(checkpoint.path, "pt") as stored:
        metadata = stored.metadata()
        if metadata["identity"] != checkpoint.identity:
            raise ValueError(
                f"{checkpoint.path} belongs to another training ({metadata['identity']});"
                " remove it to start anew, or ask for the same steps, seed and recipe"
            )
        for name, parameter in parameters.items():
            parameter.copy_(stored.get_tensor(f"parameter/{name}"))
        for name, tensor in state.items():
            tensor.copy_(stored.get_tensor(name))
    return int(metadata["step"]), float(metadata["seconds"])


def write_model(directory: Path, model: Any, fast_tokenizer: Any) -> None:
    """Write `directory` from a temporary one beside it, file by file under the final names."""
    directory.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write_model(temporary, model)
        fast_tokenizer.save_pretrained(temporary)
        for file in sorted(temporary.iterdir()):
            file.chmod(0o644)
            file.replace(directory / file.name)
    finally:
        shutil.rmtree(temporary)


def _write_model(directory: Path, model: Any) -> None:
    """What `save_pretrained` writes, without its progress bar on a log file."""
    from safetensors.torch import save_file

    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()  # if there is one
    tensors = {name: t for name, t in model.state_dict().items() if name not in tied}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str | int]:
    """What the figures depend on besides text, recipe and seed."""
    import numpy
    import tokenizers
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
    }
