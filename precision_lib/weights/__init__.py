"""Did the weights arrive? A contract of weights and formats between trainer and engine.

:func:`manifest` writes hashes of a live model; ``precision-forensics weights`` compares checkpoints
and manifests. Importing this package does not import torch.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "manifest":
        from precision_lib.weights.live import manifest

        return manifest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
