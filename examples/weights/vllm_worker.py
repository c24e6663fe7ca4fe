"""The manifest of what a vLLM worker serves.

python examples/weights/vllm_worker.py MODEL_DIRECTORY MANIFEST.json
precision-forensics weights MODEL_DIRECTORY MANIFEST.json
"""

import os
import sys
from typing import Any

from precision_lib.weights import manifest


class WeightsManifest:
    """An extension of the worker: ``worker_extension_cls`` mixes it into vLLM's own class."""

    model_runner: Any

    def write_weights_manifest(self, path: str, step: int) -> int:
        """Write the manifest of the model that this worker runs; the number of tensors.

        With tensor parallelism each rank writes its own, ``engine_rank0.json`` and so on.
        """
        from vllm import distributed

        rank = None
        if distributed.get_tensor_model_parallel_world_size() > 1:
            rank = distributed.get_tensor_model_parallel_rank()
            path = path.replace(".json", f"_rank{rank}.json")
        config = self.model_runner.model_config.hf_config
        model = self.model_runner.get_model()
        return len(manifest(model, path, config=config, step=step, rank=rank)["tensors"])


def write_before_packing(path: str) -> None:
    """For the CPU build, which packs each matrix after loading and leaves an empty weight."""
    from vllm.model_executor.model_loader import base_loader

    pack = base_loader.process_weights_after_loading

    def write_and_pack(model: Any, config: Any, *others: Any) -> None:
        manifest(model, path, config=config.hf_config, step=0)
        pack(model, config, *others)

    base_loader.process_weights_after_loading = write_and_pack


def main(model: str, path: str) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM
    from vllm.platforms import current_platform

    packs = current_platform.is_cpu()
    if packs:
        write_before_packing(path)
    extension = "vllm_worker.WeightsManifest"
    engine = LLM(model, dtype="bfloat16", enforce_eager=True, worker_extension_cls=extension)
    if not packs:  # in training: after each update, with the step that was sent
        engine.collective_rpc("write_weights_manifest", args=(path, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
