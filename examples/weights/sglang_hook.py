"""The manifest of an SGLang engine, by the hook that SGLang offers for updates of its weights.

Start the server with ``--custom-weight-loader sglang_hook.write_weights_manifest``. After

    engine.update_weights_from_tensor(
        [("step", torch.tensor(step))], load_format="sglang_hook.write_weights_manifest"
    )

SGLang then calls the function with its model and the tensors that were sent. Nothing is loaded.
"""

from pathlib import Path
from typing import Any

from precision_lib.weights import manifest

FOLDER = Path("manifests")


def write_weights_manifest(model: Any, named_tensors: list[tuple[str, Any]]) -> None:
    """Write ``manifests/engine_STEP.json`` of the weights that the engine serves."""
    step = int(dict(named_tensors)["step"])
    manifest(model, FOLDER / f"engine_{step}.json", step=step, label=f"SGLang, step {step}")
