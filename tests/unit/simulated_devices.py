"""Two devices on a machine that has one: CPU memory with the name of a device on it.

The hazard. Whether every index, mask and weight is on the device of what it meets shows only where
there are two devices, and a test that needs two GPUs is a test that nobody runs. Here ``cpu:1`` and
``cpu:2`` are names that memory carries: ``.to("cpu:1")`` copies and names the copy, results are
named as their operands are, and an operation on two names raises as torch does for two GPUs. The
numbers are the CPU's, so that a spread model has to repeat the plain one bit for bit. What would
make the host wait for a GPU is counted: a copy from one name to another, a number that Python
reads, a result whose size depends on values.

What is not seen: memory that C++ makes on its own (gradients) has no name and may meet any other;
and nothing is said of the kernels, streams and copies of real GPUs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from precision_lib.models.loading import Checkpoint
from precision_lib.models.reward_model import RewardModel

HOST = torch.device("cpu")
FIRST, SECOND = torch.device("cpu:1"), torch.device("cpu:2")

_DEVICE = torch.Tensor.device.__get__
_MOVES = (torch.Tensor.to, torch.Tensor.cpu)
#: What makes the host wait for the device of the first argument.
_READS = {
    getattr(torch.Tensor, name)
    for name in (
        *("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "nonzero"),
        *("unique", "equal", "masked_select"),
    )
} | {torch.nonzero, torch.unique, torch.equal, torch.masked_select}
_INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
#: The result is where the first argument is, wherever the others are.
_ACROSS = (torch.Tensor.copy_, torch.Tensor.__deepcopy__)
_SETTERS = tuple(getattr(torch.Tensor, name).__set__ for name in ("data", "grad"))


class TwoDevices(TorchFunctionMode):
    """Names of memory, kept while the context is open.

    Attributes:
        waits: how often the host would have waited for a device, by the function's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._names: dict[int, tuple[torch.device, StorageWeakRef]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE:
            return self.name(args[0]) or HOST
        if func in _MOVES:
            return self._moved(func, args, kwargs)
        if func in _SETTERS:
            return func(*args, **kwargs)
        if self._waits(func, args):
            self.waits[func.__name__] += 1
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = HOST
        operands = args[:1] if func in _ACROSS else [*args, *kwargs.values()]
        if func is torch.Tensor.__getitem__:  # an index of the host is legal on every device
            operands = [x for x in tree_iter(operands) if not self._is_of_host(x) or x is args[0]]
        name = self._common(func, operands)
        if asked is not None:
            name = torch.device(asked)
        elif name is None and not any(isinstance(x, torch.Tensor) for x in tree_iter(args)):
            name = HOST  # made from numbers
        result = func(*args, **kwargs)
        for x in tree_iter(result):
            if isinstance(x, torch.Tensor) and name is not None and self.name(x) is None:
                self._give(x, name)
        return result

    def _waits(self, func: Any, args: Sequence[Any]) -> bool:
        if func not in (*_READS, *_INDEXING) or self._is_of_host(args[0]):
            return False
        index = args[1] if func in _INDEXING else ()
        parts = [x for x in tree_iter(index) if isinstance(x, torch.Tensor)]
        return func in _READS or any(x.dtype == torch.bool or self._is_of_host(x) for x in parts)

    def _is_of_host(self, x: Any) -> bool:
        return isinstance(x, torch.Tensor) and self.name(x) in (HOST, None)

    def name(self, x: torch.Tensor) -> torch.device | None:
        """The device whose name the memory of ``x`` carries."""
        found = self._names.get(x.untyped_storage()._cdata)
        return found[0] if found else None

    def _give(self, x: torch.Tensor, name: torch.device) -> None:
        if len(self._names) > 20_000:
            self._names = {k: v for k, v in self._names.items() if not v[1].expired()}
        storage = x.untyped_storage()
        self._names[storage._cdata] = name, StorageWeakRef(storage)

    def place(self, model: Any, device: torch.device) -> None:
        """Give the model's memory the name of ``device``, where it is."""
        for x in (*model.parameters(), *model.buffers()):
            self._give(x.data, device)

    def _moved(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
        """``x.to(...)`` or ``x.cpu()``: a copy with a new name where the name changes."""
        x: torch.Tensor = args[0]
        target = HOST if func == torch.Tensor.cpu else None
        given = [*args[1:], *([kwargs.pop("device")] if "device" in kwargs else [])]
        rest = []
        for value in given:
            if isinstance(value, torch.Tensor):
                target, value = self.name(value) or HOST, value.dtype
            if isinstance(value, str | int | torch.device) and not isinstance(value, bool):
                target = torch.device(value)
            else:
                rest.append(value)
        before = self.name(x)
        result = x.to(*rest, **kwargs) if rest or kwargs else x
        target = target or before
        if target is None or (target == before and result is x):
            return result
        if result.untyped_storage()._cdata == x.untyped_storage()._cdata and target != before:
            result = result.clone()
        if target != (before or HOST):
            self.waits[func.__name__] += 1
        self._give(result, target)
        return result

    def _common(self, func: Any, operands: Any) -> torch.device | None:
        """The one name of all operands; numbers of the host may meet any."""
        names = {
            str(self.name(x)): self.name(x)
            for x in tree_iter(operands)
            if isinstance(x, torch.Tensor) and not (x.ndim == 0 and self.name(x) in (HOST, None))
        }
        names.pop("None", None)
        if len(names) > 1:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func.__name__} was given "
                f"{' and '.join(sorted(names))}"
            )
        return next(iter(names.values()), None)


@contextmanager
def two_devices() -> Iterator[TwoDevices]:
    """Simulated devices ``cpu:1`` and ``cpu:2`` beside the host, inside the block."""
    with TwoDevices() as devices:
        yield devices


def split_map(
    model: Any, first: torch.device = FIRST, second: torch.device = SECOND
) -> dict[str, torch.device]:
    """A device map that cuts ``model`` behind its first layer; tied weights stay together."""
    tied = getattr(model.config, "tie_word_embeddings", False)
    places = {
        name: first if name != "lm_head" or tied else second
        for name, _ in model.named_children()
        if name != model.base_model_prefix
    }
    if "score" in places:
        places["score"] = second
    for name, child in model.base_model.named_children():
        path = f"{model.base_model_prefix}.{name}"
        if isinstance(child, torch.nn.ModuleList):
            places |= {f"{path}.{i}": second if i else first for i in range(len(child))}
        else:
            places[path] = second if name in ("norm", "ln_f") else first
    return places


def dispatched(
    loaded: Checkpoint | RewardModel, first: torch.device = FIRST, second: torch.device = SECOND
) -> Any:
    """``loaded``, its model spread by accelerate as loading with ``device_map`` does."""
    from accelerate import dispatch_model

    model = loaded.model
    places = split_map(model, first, second)
    skipped = model._skip_keys_device_placement
    dispatch_model(model, places, main_device=first, skip_keys=skipped, force_hooks=True)
    return loaded
