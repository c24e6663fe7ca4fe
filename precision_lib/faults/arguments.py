"""The arguments of one function as one value, so that a fault writes its wrong expression alone.

A subclass of :class:`Arguments` has a field for each parameter of the function, in its order and
with its defaults. ``fault_of`` gives a fault that takes such a value the function's signature.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

R = TypeVar("R")
A = TypeVar("A", bound="Arguments[Any]")


class Arguments(Generic[R]):
    """Base of the frozen dataclasses, one for each function; R is what the function returns."""

    original: ClassVar[Callable[..., Any]]

    def right(self, **changed: Any) -> R:
        """What the original function returns for these arguments, some of them changed."""
        result: R = type(self).original(**vars(self) | changed)
        return result


def fault_of(arguments: Callable[..., A]) -> Callable[[Callable[[A], R]], Callable[..., R]]:
    """A decorator: the fault takes the function's own arguments, by position or by keyword.

    Its signature names them, because a target offers an optional argument that way.
    """

    def decorated(wrong: Callable[[A], R]) -> Callable[..., R]:
        @functools.wraps(wrong)
        def broken(*positional: Any, **named: Any) -> R:
            return wrong(arguments(*positional, **named))

        broken.__signature__ = inspect.signature(arguments)  # type: ignore[attr-defined]  # of a function
        return broken

    return decorated
