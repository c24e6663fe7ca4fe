"""What a failed conformance check says."""

from collections.abc import Mapping
from typing import Any

from precision_lib.conformance.strategies.cases import Case


class ConformanceFailure(AssertionError):  # noqa: N818  (a finding about a core, not an error)
    """A core does not do what the interface asks for.

    The message says what was wrong; the input that showed it is appended, exact to the last bit.
    """

    def __init__(self, message: str, inputs: Mapping[str, Any], times: float = 0.0) -> None:
        """``times``: how many times the limit the error is, where there is one."""
        super().__init__(f"{message}\n  input: {Case(dict(inputs))!r}")
        self.times = times
