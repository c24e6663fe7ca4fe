"""What a failed conformance check says."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from precision_lib.conformance.inputs import NO_INPUTS, Inputs
from precision_lib.conformance.strategies.cases import Case

#: What CUDA says of errors after which a process can do nothing more on the device.
FATAL = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
)


class ConformanceFailure(AssertionError):  # noqa: N818  (a finding about a core, not an error)
    """A core does not do what the interface asks for.

    Attributes:
        inputs: what it was called with; exact to the last bit in the message.
        times: how many times the limit the error is, 0 where there is no limit.
        drawn: the case that was judged; a property may have called with a variant of it.
        notes: lines behind the input, such as how bad it gets elsewhere.
        cause: sentences that tell one cause from another, see ``diagnosis.py``.
    """

    def __init__(self, message: str, inputs: Inputs = NO_INPUTS, times: float = 0.0) -> None:
        super().__init__(message)
        self.inputs = inputs
        self.times = times
        self.recipe = ""
        self.drawn: Case | None = None
        self.notes: list[str] = []
        self.cause: list[str] = []

    def signature(self) -> str:
        """What failures of one cause have in common: the first line without its numbers."""
        first = re.sub(r"[-+]?\d[\w.+-]*", "#", str(self.args[0]).splitlines()[0])
        return " ".join([first, *(line.partition(":")[0] for line in self.cause[:1])])

    def case_text(self) -> str:
        """The judged case as an expression that makes it again; "" where it is too large."""
        inputs = self.drawn.inputs if self.drawn is not None else self.inputs
        text = repr(Case(inputs))
        return "" if "<" in text or not inputs.keywords() else text

    def __str__(self) -> str:
        lines = [str(self.args[0])]
        if self.inputs.keywords():
            lines.append(f"  input: {Case(self.inputs, self.recipe)!r}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """Put ``what`` in front of a failure: in which way, other than the plain one, it was called."""
    try:
        yield
    except ConformanceFailure as failure:
        failure.args = (f"{what}\n  {failure.args[0]}",)
        raise


class DeviceLostError(BaseException):
    """A function ended the device for this process: whatever runs there next fails too.

    No ``Exception``, so that Hypothesis does not look for a smaller input.

    Attributes:
        failure: of the function, with the input that was last given to it.
    """

    def __init__(self, function: str, failure: ConformanceFailure) -> None:
        what = str(failure.args[0]).splitlines()[0]
        super().__init__(f"{function} ended the device for this process: {what}")
        self.failure = failure


def is_fatal(error: BaseException) -> bool:
    """True where ``error``, or the failure that says of it, is one of ``FATAL``."""
    text = str(error.args[0]) if error.args else ""
    return any(words in text for words in FATAL)
