"""The keyword arguments of one call of a function under test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

#: What a call takes beside tensors: a number, a word, None where an option is off.
Option = float | str | None
Argument = Tensor | Option
Arguments = dict[str, Argument]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Tensors and options by the names of their arguments, all of one call.

    Attributes:
        tensors: of the format's dtype, int64 tokens, bool masks; at least one in a real call.
        options: what is no tensor.
    """

    tensors: Mapping[str, Tensor]
    options: Mapping[str, Option] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Mapping[str, Argument]) -> "Inputs":
        """The arguments, those that are tensors apart from the others."""
        return cls({}) | arguments

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.options

    def __or__(self, changed: Mapping[str, Argument]) -> "Inputs":
        """These arguments with some of them replaced, or added."""
        tensors = {k: v for k, v in changed.items() if isinstance(v, Tensor)}
        options = {k: v for k, v in changed.items() if not isinstance(v, Tensor)}
        return Inputs({**self.tensors, **tensors}, {**self.options, **options})

    def without(self, option: str) -> "Inputs":
        """The same inputs with one option less."""
        return replace(self, options={k: v for k, v in self.options.items() if k != option})

    @property
    def mask(self) -> Tensor | None:
        """The mask [B, T]; None for a function without one."""
        return self.tensors.get("mask")

    def number(self, name: str) -> float:
        """The option of that name.

        Raises:
            TypeError: when it is no number.
        """
        value = self.options[name]
        if isinstance(value, str) or value is None:
            raise TypeError(f"{name} is {value!r} and no number")
        return value

    def word(self, name: str) -> str:
        """The option of that name as text; "" where there is none."""
        return str(self.options.get(name, ""))

    def keywords(self) -> dict[str, Argument]:
        """What the function is called with, as ``function(**keywords)``."""
        return {**self.tensors, **self.options}

    def floating(self) -> dict[str, Tensor]:
        """The tensors of floating-point numbers."""
        return {k: v for k, v in self.tensors.items() if v.is_floating_point()}

    def each(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same options, every tensor changed."""
        return replace(self, tensors={k: change(v) for k, v in self.tensors.items()})

    def copied(self) -> "Inputs":
        """The same values in memory of their own."""
        return self.each(torch.clone)


NO_INPUTS = Inputs({})
