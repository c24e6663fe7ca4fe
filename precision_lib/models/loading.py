"""Load a causal language model in FP32 and cast its parameters, once, to a format.

The hazards. ``model.to(torch.bfloat16)`` also rounds the RoPE table (a phase error of 0.18 rad at
position 1,024), while loading with ``dtype=bfloat16`` does not: :func:`set_parameters` casts the
parameters and leaves every buffer alone. A reloaded model forgets ``attn_implementation`` and
falls back to fused attention. And a checkpoint saved in bf16 loads in bf16 unless told otherwise,
so "the FP32 baseline" would silently not be one.
"""

import copy
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precision_lib.formats import get_format
from precision_lib.models.embedded import POLICY_DIR
from precision_lib.runtime import deterministic

#: ``--model`` value of the model that ships with the package.
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Checkpoint:
    """A causal LM in FP32 with its tokenizer.

    Attributes:
        model: transformers model, FP32 parameters, eager attention, eval mode, on ``device``.
        tokenizer: its tokenizer.
        name: what the user asked for.
        sha256: digest of names, shapes and bytes of all FP32 parameters.
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str

    @property
    def start_token(self) -> int | None:
        """Token that begins a sequence in this model's training text, if it has one."""
        bos: int | None = self.tokenizer.bos_token_id
        eos: int | None = self.tokenizer.eos_token_id
        return bos if bos is not None else eos


class NoDeviceError(RuntimeError):
    """The device asked for is not there; the message says what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be loaded; the message says which, why, and what to do."""


def resolve_device(name: str) -> torch.device:
    """The torch device called ``name``.

    Raises:
        NoDeviceError: for ``cuda`` without a CUDA device. ValueError: for an unknown name.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; use 'cpu' or 'cuda'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NoDeviceError(
            f"no CUDA device (torch {torch.__version__} sees none); run on a GPU machine, "
            "or use the CPU"
        )
    return device


def load_checkpoint(name: str = EMBEDDED, device: str = "cpu") -> Checkpoint:
    """Load a causal LM and its tokenizer by name or directory.

    Args:
        name: ``"embedded"``, a directory written by ``save_pretrained``, or a model hub name.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        CheckpointError: missing, offline, not a causal LM, truncated, or without a tokenizer.
        NoDeviceError: no CUDA device. ValueError: unknown device.
    """
    from transformers import AutoModelForCausalLM

    target = resolve_device(device)
    source = str(POLICY_DIR) if name == EMBEDDED else name
    model, tokenizer, report = load_pretrained(
        AutoModelForCausalLM, source, "a causal language model"
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{source}: the checkpoint lacks {', '.join(missing)}, which would be random numbers; "
            "give a trained causal language model"
        )
    model = model.to(target).eval().requires_grad_(False)
    return Checkpoint(model, tokenizer, name, parameter_digest(model))


def load_pretrained(auto_class: Any, source: str, kind: str) -> tuple[Any, Any, dict[str, Any]]:
    """Model in FP32 with eager attention, its tokenizer, and what loading reported.

    Args:
        auto_class: an ``AutoModelFor...`` class of transformers.
        source: a directory written by ``save_pretrained``, or a model hub name.
        kind: what is loaded, for messages: ``"a causal language model"``.

    Raises:
        CheckpointError: missing, offline, truncated, of another kind, or without a tokenizer.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise CheckpointError(
            f"directory {source} holds no config.json; give a directory that save_pretrained wrote"
        )
    try:
        with deterministic():  # some releases draw random weights before they load the real ones
            model, report = auto_class.from_pretrained(
                source,
                dtype=torch.float32,
                attn_implementation="eager",
                experts_implementation="eager",  # grouped products have no float64 kernel
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers, safetensors and the hub each raise their own kind
        raise CheckpointError(_explain(source, error, kind)) from error
    _check(model, tokenizer, source)
    _own_memory(model)
    return model, tokenizer, report


def _own_memory(model: Any) -> None:
    """Copy the parameters out of the file: as loaded, they are maps of it.

    Whoever writes into the file while a run reads it would change the weights half-way.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _explain(source: str, error: Exception, kind: str) -> str:
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


def _check(model: Any, tokenizer: Any, source: str) -> None:
    if model.config._attn_implementation != "eager":
        raise CheckpointError(
            f"{source}: attention is {model.config._attn_implementation!r} although eager was "
            "asked for; this architecture has no eager attention in transformers"
        )
    if not tokenizer.encode("Return the value.", add_special_tokens=False):
        raise CheckpointError(
            f"{source}: its tokenizer encodes text to nothing; save the model's tokenizer there"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}; "
            "they do not belong together"
        )


def parameter_digest(model: Any) -> str:
    """SHA-256 of the names, shapes and bytes of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def working_copy(model: Any) -> Any:
    """A second model of the same architecture and values, to hold parameters in other formats."""
    return copy.deepcopy(model)


def set_parameters(
    working: Any,
    reference: Any,
    fmt: str,
    direction: dict[str, Tensor] | None = None,
    scale: float = 0.0,
) -> None:
    """Set ``working`` to ``cast(reference + scale * direction)``: FP32 arithmetic, one cast.

    Buffers (RoPE table, masks) keep the format in which the architecture made them, as loading
    with ``dtype=`` does; for fp64 they are widened, because the exact model needs them so.

    Args:
        working: the model to write, from :func:`working_copy`.
        reference: FP32 model, unchanged.
        fmt: format name of the parameters.
        direction: parameter name to FP32 tensor of its shape; None for the reference itself.
        scale: how far along ``direction``.
    """
    dtype = get_format(fmt).dtype
    targets = dict(working.named_parameters())
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            value = parameter.data
            if direction is not None:
                value = torch.add(value, direction[name], alpha=scale)
            targets[name].data = value.to(dtype, copy=True)
        buffer_dtype = torch.float64 if fmt == "fp64" else torch.float32
        for (_, buffer), (_, original) in zip(
            working.named_buffers(), reference.named_buffers(), strict=True
        ):
            if buffer.is_floating_point():
                buffer.data = original.data.to(buffer_dtype, copy=True)
    working.config.dtype = dtype
