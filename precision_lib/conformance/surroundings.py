"""What a core may change beside torch's switches: numpy's errors, directory, environment, torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

#: Where a core that patches torch would put its own functions.
_PATCHED: tuple[ModuleType | type, ...] = (torch, torch.nn.functional, torch.Tensor)


def _functions() -> list[dict[str, object]]:
    return [dict(vars(owner)) for owner in _PATCHED]


@contextmanager
def surroundings_put_back() -> Iterator[list[str]]:
    """Put back what the code inside changes, also after an exception.

    Yields:
        A list that holds, on leaving, what was changed, in words; values of the environment stay
        unsaid.
    """
    changed: list[str] = []
    errors, directory, environment = np.geterr(), Path.cwd(), dict(os.environ)
    functions = _functions()
    try:
        yield changed
    finally:
        if np.geterr() != errors:
            changed.append(f"numpy's handling of errors from {errors} to {np.geterr()}")
            np.seterr(**errors)
        if _directory() != directory:
            changed.append("the working directory")
            os.chdir(directory)
        names = {k for k in environment.keys() | os.environ.keys() if _differs(environment, k)}
        if names:
            changed.append(f"the environment: {', '.join(sorted(names))}")
            os.environ.clear()
            os.environ.update(environment)
        changed += _torch_put_back(functions)


def _directory() -> Path | None:
    """The working directory; None where it was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def _differs(environment: dict[str, str], name: str) -> bool:
    return environment.get(name) != os.environ.get(name)


def _torch_put_back(before: list[dict[str, object]]) -> list[str]:
    """Names of the functions of torch that were replaced; what was added stays."""
    replaced = []
    for owner, functions, now in zip(_PATCHED, before, _functions(), strict=True):
        if len(now) == len(functions) and all(map(is_, now.values(), functions.values())):
            continue
        for name, function in functions.items():
            if callable(function) and vars(owner).get(name) is not function:
                replaced.append(f"{owner.__name__}.{name}")
                setattr(owner, name, function)
    return [f"functions of torch: {', '.join(replaced)}"] if replaced else []
