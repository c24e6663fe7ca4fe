"""What a failed conformance check says."""

from collections.abc import Mapping
from typing import Any

from precision_lib.conformance.strategies.cases import Case


class ConformanceFailure(AssertionError):  # noqa: N818  (a finding about a core, not an error)
    """A core does not do what the interface asks for.

    Attributes:
        inputs: what it was called with; exact to the last bit in the message.
        times: how many times the limit the error is, 0 where there is no limit.
        notes: lines behind the input, such as how bad it gets elsewhere.
    """

    def __init__(self, message: str, inputs: Mapping[str, Any], times: float = 0.0) -> None:
        super().__init__(message)
        self.inputs = dict(inputs)
        self.times = times
        self.recipe = ""
        self.notes: list[str] = []

    def case_text(self) -> str:
        """The input as an expression that makes it again; "" where it is too large for one."""
        text = repr(Case(self.inputs))
        return "" if "<" in text or not self.inputs else text

    def __str__(self) -> str:
        lines = [str(self.args[0])]
        if self.inputs:
            lines.append(f"  input: {Case(self.inputs, self.recipe)!r}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])
