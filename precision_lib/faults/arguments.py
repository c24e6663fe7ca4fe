"""The arguments of one function as one value, so that a fault writes its wrong expression alone.

A subclass of :class:`Arguments` has a field for each parameter of the function, in its order and
with its defaults. ``fault_of`` gives a fault that takes such a value the function's signature.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from precision_lib.arguments import taking

R = TypeVar("R")
fault_of = taking


class Arguments(Generic[R]):
    """Base of the frozen dataclasses, one for each function; R is what the function returns."""

    original: ClassVar[Callable[..., Any]]

    def right(self, **changed: Any) -> R:
        """What the original function returns for these arguments, some of them changed."""
        result: R = type(self).original(**vars(self) | changed)
        return result
