"""Who runs the checks of a core: a child process, or this one where a child is not safe."""

import time
from collections.abc import Sequence
from types import TracebackType

import torch
from hypothesis import settings

from precision_lib.conformance.checks import Check, find_check
from precision_lib.conformance.child import Child, ToldFailure, as_found, can_fork, told
from precision_lib.conformance.failure import ConformanceFailure, DeviceLostError
from precision_lib.conformance.in_rl_terms import Figures, measure
from precision_lib.conformance.profiles import CI
from precision_lib.conformance.runner import Outcome, on_device, run
from precision_lib.conformance.written_case import read_case
from precision_lib.jsonio import JsonObject
from precision_lib.targets import Target
from precision_lib.targets.objectives import base

#: A whole run that takes longer than this is announced.
LONG_RUN_SECONDS = 300.0
#: Checks that the announcement is estimated from.
_FIRST_CHECKS = 20


class Examiner:
    """Runs the checks of one target, one after the other.

    Args:
        limit: seconds that a check of 25 examples may take, in a child.
        apart: whether to run in a child process where that is safe.
    """

    def __init__(self, target: Target, device: str, limit: float, *, apart: bool) -> None:
        self._target, self._device = target, device
        self._seconds = limit * max(1, settings().max_examples / CI.max_examples)
        safe = can_fork(device, torch.get_num_threads())
        self._child = Child(self._answer) if apart and safe else None
        self._spent: list[float] = []

    def __enter__(self) -> "Examiner":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._child is not None:
            self._child.close()

    def examine(
        self, check: Check, seed: int, pinned: Sequence[str]
    ) -> Outcome | ConformanceFailure:
        """What the check finds.

        Args:
            seed: which examples. pinned: printed cases that are tried first.

        Raises:
            DeviceLostError: the function ended the device.
        """
        start = time.monotonic()
        try:
            if self._child is None:
                return self._run(check.name, seed, pinned)
            question = {"check": check.name, "seed": seed, "pinned": list(pinned)}
            answer = self._child.ask(check.function, question, self._seconds)
        except ConformanceFailure as failure:
            return failure
        finally:
            self._spent.append(time.monotonic() - start)
        if answer.get("lost"):
            raise DeviceLostError(check.function, ToldFailure(answer["failure"]))
        return as_found(answer)

    def consequences(self, function: str) -> dict[str, Figures]:
        """What the function's errors mean on an ordinary batch, by format; {} without a scene."""
        if self._child is None:
            return self._measure(function)
        try:
            return self._child.ask(function, {"measure": function}, self._seconds)
        except ConformanceFailure as failure:
            return {"fp32": {"raised": str(failure.args[0])}}

    def slow(self, checks: int) -> str:
        """Once, after 20 checks: how long a slow core takes for all; "" otherwise."""
        if len(self._spent) != _FIRST_CHECKS:
            return ""
        expected = sum(self._spent) / _FIRST_CHECKS * checks
        if expected < LONG_RUN_SECONDS:
            return ""
        return (
            f"slow core: about {expected / 60:.0f} minutes for {checks} checks; "
            "-k FUNCTION runs the checks of one function"
        )

    def _answer(self, question: JsonObject) -> JsonObject:
        """In the child: run a check, or measure a function."""
        if "measure" in question:
            return self._measure(question["measure"])
        try:
            return told(self._run(**question))
        except ConformanceFailure as failure:
            return told(failure)
        except DeviceLostError as lost:
            return told(lost.failure) | {"lost": True}

    def _run(self, check: str, seed: int, pinned: Sequence[str]) -> Outcome:
        asked = find_check(check)
        moved = on_device(asked.function, self._target.functions[asked.function], self._device)
        taken = self._target.only.get(base(asked.function), {})
        return run(asked, moved, settings(), seed, [read_case(text) for text in pinned], taken)

    def _measure(self, function: str) -> dict[str, Figures]:
        return measure({function: self._target.functions[function]}).get(function, {})
