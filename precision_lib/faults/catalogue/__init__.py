"""The list of faults: what each breaks, where it was seen, and which test has to notice.

A topic is a TOML file. ``[[of]]`` has what its faults share, ``[[of.fault]]`` is one of them; the
keys are the fields of :class:`Fault`. The broken functions stand in the other modules of
``faults`` and are imported when one is used. ``harmless``: refactorings that no check may notice.
"""

import importlib
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CATALOGUE", "Fault"]

_TOPICS = (
    "distributions",
    "statistics",
    "losses",
    "objectives",
    "other_paths",
    "pipeline",
    "harmless",
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One mutation of one function.

    Attributes:
        name: how it is planted; also the name of the broken function.
        function, module: what it replaces, and the module that defines it.
        implementation: the module of ``faults`` that holds the broken function.
        meaning: what goes wrong.
        source: where it was seen.
        caught_by: the conformance check that a core with it has to fail, as pytest prints its id,
            of the function or of one of its optional arguments; "" where ``function`` is not one
            that a core offers.
        caught_in_pipeline: the test of the pipeline that has to turn red when it is planted, as
            file::test below tests/forensics; "" where the pipeline does not depend on it.
        harmless: nobody may catch it: it changes less than FP32 arithmetic itself leaves open.
        measured_in: for a harmless one, the file below tests/forensics that sees what it does.
    """

    name: str
    function: str
    module: str
    implementation: str
    meaning: str
    source: str
    caught_by: str = ""
    caught_in_pipeline: str = ""
    harmless: bool = False
    measured_in: str = ""

    @property
    def broken(self) -> Callable[..., Any]:
        """The replacement, with the signature of the original; imports torch."""
        module = importlib.import_module(f"precision_lib.faults.{self.implementation}")
        broken: Callable[..., Any] = getattr(module, self.name)
        return broken


def _of_topic(topic: str) -> Iterator[Fault]:
    """The faults of one file; a missing or unknown key is a TypeError that names it."""
    text = (Path(__file__).parent / f"{topic}.toml").read_text(encoding="utf-8")
    for group in tomllib.loads(text)["of"]:
        for fault in group.pop("fault"):
            yield Fault(**group | fault)


CATALOGUE = tuple(fault for topic in _TOPICS for fault in _of_topic(topic))
