"""Stand-ins for packages that are absent, while somebody's module is imported.

The module that holds a framework's arithmetic imports packages that the arithmetic does not use
(ray, deepspeed, vllm). A stand-in is removed from ``sys.modules``, and from the package that it is
a part of, when the import is done. The caller names what is replaced: packages that are absent, and
parts of a framework that hold nothing that is called.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


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
            stub = sys.modules.pop(name)
            parent, _, part = name.rpartition(".")
            owner = sys.modules.get(parent)
            if owner is not None and vars(owner).get(part) is stub:
                delattr(owner, part)
        sys.modules.update(hidden)
        for name, module in hidden.items():
            parent, _, part = name.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], part, module)
