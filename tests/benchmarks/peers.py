"""The peers' own functions, and nothing else of them.

The hazard. A benchmark against a copy of somebody's function measures the copy. So the installed
packages are called; but importing one pulls in whatever its trainers need (ray, deepspeed, vllm),
which the arithmetic does not. Here a package that is not installed and that no measured function
uses is replaced by a permissive stub while the peer is imported, and only then: the stubs are out
of ``sys.modules`` again when the import is done. A peer that is absent is a reason to skip.

Nothing in ``precision_lib`` imports this.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: How to get the peers, told when one is missing; the recipe is in docs/benchmarks.md.
INSTALL = "see docs/benchmarks.md, 'Installing the peers'"


class PeerMissingError(Exception):
    """The peer, or something that it needs, is not installed."""


@dataclass(frozen=True)
class Peer:
    """How to import one peer.

    Attributes:
        modules: the modules with the measured functions.
        stubs: packages to stub when they are not installed.
        forced: modules to stub in any case: parts of the peer that import half of the world.
    """

    modules: tuple[str, ...]
    stubs: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()


PEERS = {
    "trl": Peer(("trl.trainer.utils",)),
    "verl": Peer(("verl.utils.torch_functional", "verl.trainer.ppo.core_algos"), ("ray",)),
    "openrlhf": Peer(
        (
            "openrlhf.models.utils",
            "openrlhf.models.loss",
            "openrlhf.trainer.ppo_utils.experience_maker",
        ),
        ("deepspeed", "peft", "ray", "ring_flash_attn", "vllm", "pylatexenc"),
        (
            "openrlhf.models.actor",
            "openrlhf.models.model",
            "openrlhf.trainer.ray",
            "openrlhf.utils.utils",
        ),
    ),
    "torchtune": Peer(
        ("torchtune.rlhf", "torchtune.rlhf.loss"),
        ("torchao", "sentencepiece", "tiktoken", "torchvision", "kagglehub", "blobfile", "PIL"),
    ),
}


class _Anything:
    """Takes any call, attribute, subclassing or decoration, and is of no use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else _Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __getitem__(self, key: Any) -> Any:
        return _Anything()

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__


class _Stub(ModuleType):
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _StubFinder(MetaPathFinder, Loader):
    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = tuple(roots)

    def covers(self, name: str) -> bool:
        return any(name == root or name.startswith(f"{root}.") for root in self.roots)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if self.covers(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


@contextmanager
def stubbed(names: Sequence[str]) -> Iterator[None]:
    """Context in which the modules ``names`` and everything below them import as stubs."""
    finder = _StubFinder(names)
    hidden = {name: module for name, module in sys.modules.items() if finder.covers(name)}
    for name in hidden:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if finder.covers(name)]:
            del sys.modules[name]
        sys.modules.update(hidden)


@cache
def load(name: str) -> dict[str, Any]:
    """Every public name of the peer's measured modules, later modules last.

    The numerical state is as before: importing transformers, for one, draws random numbers.

    Raises:
        PeerMissingError: when it is not installed or does not import; the message says why.
    """
    from precision_lib.runtime import deterministic

    peer = PEERS[name]
    if importlib.util.find_spec(name) is None:
        raise PeerMissingError(f"{name} is not installed; {INSTALL}")
    absent = [stub for stub in peer.stubs if importlib.util.find_spec(stub) is None]
    names: dict[str, Any] = {}
    with deterministic(), stubbed((*absent, *peer.forced)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in peer.modules:
            try:
                names |= vars(importlib.import_module(module))
            except Exception as error:  # a peer may fail in any way; the others are still measured
                reason = f"{module} does not import ({type(error).__name__}: {error}); {INSTALL}"
                raise PeerMissingError(reason) from error
    return names
