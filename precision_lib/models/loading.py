"""Load a causal language model in FP32 and cast its parameters, once, to a format.

The hazards. ``model.to(torch.bfloat16)`` also rounds the RoPE table (a phase error of 0.18 rad at
position 1,024), while loading with ``dtype=bfloat16`` does not: :func:`set_parameters` casts the
parameters and leaves every buffer alone. A reloaded model forgets ``attn_implementation`` and
falls back to fused attention. And a checkpoint saved in bf16 loads in bf16 unless told otherwise,
so "the FP32 baseline" would silently not be one.

A model that no single device holds is spread over several (``device_map``): every tensor is then
looked up on the device where it is, and the model is never moved as a whole.
"""

import hashlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precision_lib.formats import get_format
from precision_lib.models import refusals
from precision_lib.models.embedded import POLICY_DIR
from precision_lib.models.lm_head import put_head, use_own_head
from precision_lib.models.placement import STRATEGIES, DeviceMap, copy_in_place
from precision_lib.models.prompts import Prompts
from precision_lib.runtime import deterministic

#: ``--model`` value of the model that ships with the package.
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Checkpoint:
    """A causal LM in FP32 with its tokenizer.

    Attributes:
        model: transformers model, FP32 parameters, eager attention, eval mode, on its device(s).
        tokenizer: its tokenizer.
        name: what the user asked for.
        sha256: digest of names, shapes and bytes of all FP32 parameters.
        prompts: what the policy is asked; None for the shipped prompts.
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    prompts: Prompts | None = None

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


def load_checkpoint(
    name: str = EMBEDDED, device: str = "cpu", device_map: DeviceMap = None
) -> Checkpoint:
    """Load a causal LM and its tokenizer by name or directory.

    Args:
        name: ``"embedded"``, a directory written by ``save_pretrained``, or a model hub name.
        device: ``"cpu"`` or ``"cuda"``.
        device_map: spread the model over several devices instead, see :func:`target_device`.

    Raises:
        CheckpointError: missing, offline, not a causal LM, truncated, without a tokenizer, or
            larger than the devices of ``device_map``.
        NoDeviceError: no CUDA device. ValueError: unknown device, or both device and map.
    """
    from transformers import AutoModelForCausalLM

    target = target_device(device, device_map)
    source = str(POLICY_DIR) if name == EMBEDDED else name
    model, tokenizer, report = load_pretrained(
        AutoModelForCausalLM, source, "a causal language model", device_map
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{source}: the checkpoint lacks {', '.join(missing)}, which would be random numbers; "
            "give a trained causal language model"
        )
    model = settled(model, target)
    return Checkpoint(model, tokenizer, name, parameter_digest(model))


def target_device(device: str, device_map: DeviceMap) -> torch.device | None:
    """Where to move a loaded model: None for nowhere, because ``device_map`` places it.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        device_map: None; one of accelerate's :data:`STRATEGIES`, which use every GPU; a device for
            the whole model; or module names to devices, which transformers checks in loading.

    Raises:
        CheckpointError: accelerate is not installed. NoDeviceError: no CUDA device.
        ValueError: an unknown name, or both device and map.
    """
    if device_map is None:
        return resolve_device(device)
    if device != "cpu":
        raise ValueError(
            f"device {device!r} and device map {device_map!r} both place the model; give one"
        )
    _check_accelerate()
    if isinstance(device_map, str) and device_map not in STRATEGIES:
        try:
            resolve_device(device_map)
        except ValueError:
            raise ValueError(
                f"unknown device map {device_map!r}; use {', '.join(STRATEGIES)} or a device"
            ) from None
    return None


def _check_accelerate() -> None:
    from transformers.utils import is_accelerate_available

    if not is_accelerate_available():
        raise CheckpointError(
            "a device map needs the package accelerate, which is missing or too old; install the "
            "extra multi-gpu: pip install 'rlhf-precision-forensics[multi-gpu]', or in a checkout "
            "pip install -e '.[multi-gpu]'"
        )


def settled(model: Any, target: torch.device | None) -> Any:
    """``model`` on ``target`` (None: where it is), in eval mode, without gradients."""
    if target is not None:
        model = model.to(target)
    return model.eval().requires_grad_(False)


def load_pretrained(
    auto_class: Any, source: str, kind: str, device_map: DeviceMap = None
) -> tuple[Any, Any, Mapping[str, Collection[str]]]:
    """Model in FP32 with eager attention, its tokenizer, and what loading reported.

    Args:
        auto_class: an ``AutoModelFor...`` class of transformers.
        source: a directory written by ``save_pretrained``, or a model hub name.
        kind: what is loaded, for messages: ``"a causal language model"``.
        device_map: None for the CPU; otherwise what :func:`target_device` has accepted.

    Raises:
        CheckpointError: missing, offline, truncated, of another kind, without a tokenizer, or
            larger than the devices of ``device_map``.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    _refuse(refusals.of_directory(Path(source)))
    try:
        with deterministic():  # some releases draw random weights before they load the real ones
            model, report = auto_class.from_pretrained(
                source,
                dtype=torch.float32,
                attn_implementation="eager",
                experts_implementation="eager",  # grouped products have no float64 kernel
                output_loading_info=True,
                **({} if device_map is None else {"device_map": device_map}),
            )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers, safetensors and the hub each raise their own kind
        raise CheckpointError(refusals.of_error(source, error, kind)) from error
    _refuse(refusals.of_model(model, tokenizer, source))
    _own_memory(model)
    return model, tokenizer, report


def _refuse(reason: str) -> None:
    if reason:
        raise CheckpointError(reason)


def _own_memory(model: Any) -> None:
    """Copy the parameters out of the file: as loaded, they are maps of it.

    Whoever writes into the file while a run reads it would change the weights half-way. On another
    device they are copies already.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def parameter_digest(model: Any) -> str:
    """SHA-256 of the names, shapes and bytes of all parameters, in the order of their names.

    Where the parameters are has no part in it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def working_copy(model: Any) -> Any:
    """A second model of the same architecture and values, to hold parameters in other formats.

    Each parameter is on the device of the original's.
    """
    return copy_in_place(model)


def set_parameters(
    working: Any,
    reference: Any,
    fmt: str,
    direction: dict[str, Tensor] | None = None,
    scale: float = 0.0,
) -> None:
    """Set ``working`` to ``cast(reference + scale * direction)``: FP32 arithmetic, one cast.

    An LM head in a format of its own (``bf16/fp32``) is cast from the FP32 one, see
    :mod:`precision_lib.models.lm_head`.

    Buffers (RoPE table, masks) keep the format in which the architecture made them, as loading
    with ``dtype=`` does; for fp64 they are widened, because the exact model needs them so. Every
    tensor stays on the device where ``working`` has it: its hooks send the inputs there.

    Args:
        working: the model to write, from :func:`working_copy`.
        reference: FP32 model, unchanged.
        fmt: format name of the parameters, or ``format/format of the LM head``.
        direction: parameter name to FP32 tensor of its shape; None for the reference itself.
        scale: how far along ``direction``.
    """
    fmt, _, head = fmt.partition("/")
    dtype = get_format(fmt).dtype
    use_own_head(working)
    targets = dict(working.named_parameters())
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            value = parameter.data
            if direction is not None:
                value = torch.add(value, direction[name], alpha=scale)
            targets[name].data = value.to(targets[name].device, dtype, copy=True)
        buffer_dtype = torch.float64 if fmt == "fp64" else torch.float32
        for (_, buffer), (_, original) in zip(
            working.named_buffers(), reference.named_buffers(), strict=True
        ):
            if buffer.is_floating_point():
                buffer.data = original.data.to(buffer.device, buffer_dtype, copy=True)
    working.config.dtype = dtype
    if head:
        put_head(working, reference, head, direction, scale)
