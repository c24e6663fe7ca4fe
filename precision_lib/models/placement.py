"""A model over several devices, as accelerate spreads it: where it is, and how to copy it.

The hazard. accelerate replaces methods of a spread model's instance. ``copy.deepcopy`` takes them
over: ``copy.to(torch.bfloat16)`` then rounds the *original*, because that method is a closure over
it. So a copy is made without them and spread anew over the same devices. Where the devices are too
small, accelerate leaves weights on the ``meta`` device: such a model is refused on loading.
"""

import copy
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from precision_lib.jsonio import Json

#: What transformers takes as ``device_map``: a strategy, a device, or module names to devices.
DeviceMap = str | Mapping[str, str | int | torch.device] | None

#: Strategies by which accelerate chooses the devices itself.
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")

#: What accelerate keeps in an instance; all of it belongs to that instance alone.
_OF_THE_INSTANCE = (
    *("_hf_hook", "_old_forward", "forward"),
    *("to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa", "neuron"),
)


def devices_of(model: Any) -> tuple[torch.device, ...]:
    """Devices that hold parameters, each once; first the one that takes the model's input."""
    return tuple(dict.fromkeys(parameter.device for parameter in model.parameters()))


def computes_on_cpu(*models: Any) -> bool:
    """Whether any parameter of any of ``models`` is on the CPU, and so the products with it."""
    return any(device.type == "cpu" for model in models for device in devices_of(model))


def is_dispatched(model: Any) -> bool:
    """Whether accelerate's hooks are in the model."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def spread(model: Any) -> dict[str, Json]:
    """For a record: what each of several devices holds, and by which accelerate; else nothing."""
    if not is_dispatched(model):
        return {}
    held = dict.fromkeys(map(str, devices_of(model)), 0)
    for parameter in model.parameters():
        held[str(parameter.device)] += parameter.numel() * parameter.element_size()
    return {"parameter_bytes": held, "accelerate": version("accelerate")}


def left_behind(model: Any) -> list[str]:
    """Names of the parameters and buffers that are on no device, but in CPU memory or on disk."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in tensors if tensor.device.type == "meta"]


def copy_in_place(model: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy of ``model`` that runs weights of its own, each on the device of the original's.

    A model without hooks is copied by ``copy.deepcopy`` and nothing else, which ``memo`` is for.
    """
    if not is_dispatched(model):
        return copy.deepcopy(model, memo)
    from accelerate import dispatch_model

    memo = {} if memo is None else memo
    for module in model.modules():
        held = (vars(module).get(name) for name in _OF_THE_INSTANCE)
        memo.update((id(x), None) for x in held if x is not None)
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        for name in _OF_THE_INSTANCE:
            vars(module).pop(name, None)
    return dispatch_model(
        twin,
        device_map=model.hf_device_map,
        main_device=model._hf_hook.execution_device,
        skip_keys=model._skip_keys_device_placement,
        force_hooks=True,
    )
