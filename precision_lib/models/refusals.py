"""Why a checkpoint is refused, in words: what it is, why that is no FP32 model, and what to do.

Each function returns "" where there is nothing against the checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from precision_lib.models.placement import left_behind


def of_directory(source: Path) -> str:
    """Before anything is loaded: no checkpoint, or quantised weights, which are none in FP32."""
    config = source / "config.json"
    if not config.is_file():
        packed = sorted(path.name for path in source.glob("*.gguf"))
        how = f"; load {packed[0]} with gguf_file= and save it there" if packed else ""
        without = (
            f"directory {source} holds no config.json; give a directory that save_pretrained "
            f"wrote{how}"
        )
        return without if source.is_dir() else ""
    try:
        quantised = json.loads(config.read_text(encoding="utf-8")).get("quantization_config")
    except (ValueError, AttributeError):  # loading explains what is wrong with the file
        return ""
    if not quantised:
        return ""
    method = quantised.get("quant_method", "unknown method")
    return (
        f"{source}: its weights are quantised ({method}), and every configuration starts from "
        "FP32 weights; give the original checkpoint, saved in bf16, fp16 or fp32"
    )


def of_error(source: str, error: Exception, kind: str) -> str:
    """What an error in loading means; ``kind`` is what was to be loaded."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not Path(source).exists():
        return (
            f"cannot load model {source!r}: there is no such directory, and it could not be had "
            f"from the model hub ({reason}); check the name, or save the checkpoint and its "
            "tokenizer with save_pretrained and give that directory"
        )
    return (
        f"cannot load {kind} and its tokenizer from {source}: {reason}; the "
        "directory must hold config.json, model.safetensors and the tokenizer files, whole"
    )


def of_model(model: Any, tokenizer: Any, source: str) -> str:
    """After loading: other attention, a tokenizer of another model, devices that are too small."""
    if model.config._attn_implementation != "eager":
        return (
            f"{source}: attention is {model.config._attn_implementation!r} although eager was "
            "asked for; this architecture has no eager attention in transformers"
        )
    if not tokenizer.encode("Return the value.", add_special_tokens=False):
        return f"{source}: its tokenizer encodes text to nothing; save the model's tokenizer there"
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        return (
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}; "
            "they do not belong together"
        )
    missing = left_behind(model)
    if missing:
        return (
            f"{source}: the devices are too small, {len(missing)} of the model's tensors were left "
            f"in CPU memory or on disk ({missing[0]}, ...) and would be fetched at every forward; "
            "use more GPUs, larger ones, or a smaller model"
        )
    return ""
