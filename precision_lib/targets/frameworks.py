"""Frameworks whose numeric core can be tested: what is imported of them, and which releases.

The hazard. An adapter that was written for one release may call something else in the next. So
``adapters/frameworks.toml`` names the releases that each was checked against, and others are
refused. Functions are taken from the installed package when they are asked for, and never changed
or copied.
"""

import importlib
import importlib.util
import re
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from precision_lib.targets.errors import TargetError
from precision_lib.targets.stubs import stubbed


class FrameworkMissingError(TargetError):
    """The framework, or something that it needs, is not installed."""


@dataclass(frozen=True, eq=False)  # compared by identity, so that load() can remember it
class Framework:
    """One framework and how to import its numeric core.

    Attributes:
        name: of the adapter, and of the distribution where that has no other.
        first, below: the releases that the adapter was checked against: first <= release < below.
        modules: the modules that hold the functions.
        offered: function of the interface to what is called, ``module.function``.
        not_offered: function of the interface to the reason why the framework has none.
        stubs: packages that are replaced during the import when they are not installed.
        forced: parts of the framework that are replaced in any case, because they import half of
            the world and hold nothing that is called.
        needs: light packages that it imports and that pip does not bring with ``--no-deps``.
        distribution: the name that pip knows, where it is another.
    """

    name: str
    first: str
    below: str
    modules: tuple[str, ...]
    offered: Mapping[str, str]
    not_offered: Mapping[str, str] = field(default_factory=dict)
    stubs: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    distribution: str = ""

    @property
    def install(self) -> str:
        """The command that installs it without its heavy dependencies."""
        packages = " ".join((f"{self.distribution or self.name}=={self.first}", *self.needs))
        return f"./setup.sh --local -- pip install --no-deps {packages}"

    def version(self) -> str:
        """The installed release, without a local suffix.

        Raises:
            FrameworkMissingError: when it is not installed.
        """
        try:
            return metadata.version(self.distribution or self.name).split("+")[0]
        except metadata.PackageNotFoundError:
            raise FrameworkMissingError(
                f"{self.name} is not installed; {self.install} (see docs/frameworks.md)"
            ) from None

    def function(self, name: str) -> Any:
        """What the framework's modules hold under this name; see :func:`load`."""
        return load(self)[name]


@cache
def framework(name: str) -> Framework:
    """The framework that has an adapter of this name, as ``adapters/frameworks.toml`` says."""
    text = (Path(__file__).parent / "adapters" / "frameworks.toml").read_text(encoding="utf-8")
    stored = tomllib.loads(text)[name]
    lists = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
    return Framework(name=name, **stored | lists)


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version: ``0.11.2.post1`` is (0, 11, 2)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


class Names(dict[str, Any]):
    """Names of modules; one that is not there is said with the framework's name."""

    def __init__(self, framework: str) -> None:
        super().__init__()
        self.framework = framework

    def __missing__(self, name: str) -> Any:
        raise AttributeError(f"{self.framework} has no {name!r} where its adapter looks for it")


@cache
def load(framework: Framework) -> Names:
    """Every public name of the framework's modules, later modules last.

    Looked up once: each call of an adapter comes here, and its time is measured as the framework's.
    The numerical state stays as it was; importing transformers draws numbers.

    Raises:
        FrameworkMissingError: when it is absent, or something that its modules import.
        TargetError: when its release is not one that the adapter was checked against.
    """
    version = framework.version()
    if not release(framework.first) <= release(version) < release(framework.below):
        raise TargetError(
            f"{framework.name} {version} is installed; its adapter was checked against "
            f"{framework.first} <= release < {framework.below}, and calls nothing else; "
            f"{framework.install}"
        )
    from precision_lib.runtime import deterministic

    absent = [stub for stub in framework.stubs if importlib.util.find_spec(stub) is None]
    names = Names(framework.name)
    with deterministic(), stubbed((*absent, *framework.forced)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in framework.modules:
            try:
                names |= vars(importlib.import_module(module))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a framework may fail to import in any way
                why = f"{module} does not import ({type(error).__name__}: {error})"
                raise FrameworkMissingError(
                    f"{framework.name}: {why}; what it needs stands in docs/frameworks.md"
                ) from error
    return names
