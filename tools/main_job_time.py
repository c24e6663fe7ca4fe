"""CPU seconds of the main job by stage: the table "Where the main job's time goes".

``python -m tools.main_job_time [--into docs/benchmarks.md] [ARGUMENT ...]``

It runs ``pytest -m forensics ARGUMENT ...`` in this process and charges CPU time to the innermost
open stage. Processes that ended are included. Wall time depends on what else the machine does, so
it is shown once, below the table.
"""

import resource
import sys
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

from precision_lib.environment import set_environment
from precision_lib.forensics.hypotheses import HYPOTHESES
from tools.documents import write_between

#: Stages in the order of the table; what is not in another one is the last.
STAGES = ("import", "collection", "load", "freeze", *HYPOTHESES, "conformance", "rest")
#: Session fixtures that are stages of their own, whichever test asks for them first.
FIXTURES = {"pipeline": "load", "trajectories": "freeze"}
#: Beginning of a test file's name to the stage of its tests.
FILES = {f"test_{stage.lower()}": stage for stage in (*HYPOTHESES, "conformance")}


@dataclass(frozen=True)
class Cost:
    """CPU seconds of this process and of its children that ended."""

    user: float = 0.0
    system: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.user + other.user, self.system + other.system)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.user - other.user, self.system - other.system)

    @property
    def both(self) -> float:
        """User and system seconds."""
        return self.user + self.system


def spent() -> Cost:
    """What has been spent since this process began."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum((Cost(usage.ru_utime, usage.ru_stime) for usage in usages), Cost())


@dataclass(eq=False)  # pluggy keeps plug-ins in sets
class Stages:
    """A pytest plug-in that charges CPU time to the innermost open stage."""

    costs: defaultdict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    _open: list[str] = field(default_factory=lambda: ["rest"])
    _charged: Cost = field(default_factory=Cost)

    def _charge(self) -> None:
        now = spent()
        self.costs[self._open[-1]] += now - self._charged
        self._charged = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge what is spent inside to ``name``."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        with self.stage("collection"):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        begins = (stage for name, stage in FILES.items() if item.path.name.startswith(name))
        with self.stage(next(begins, "rest")):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        with self.stage(FIXTURES.get(fixturedef.argname, self._open[-1])):
            return (yield)


def table(costs: dict[str, Cost], arguments: list[str], wall: float) -> str:
    """The table in Markdown, with the command and the wall time below it."""
    total = sum(costs.values(), Cost())
    rows = [(name, costs.get(name, Cost())) for name in STAGES] + [("**all**", total)]
    lines = ["| stage | CPU seconds | of them system | share |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {cost.both:.1f} | {cost.system:.1f} | {cost.both / total.both:.0%} |"
        for name, cost in rows
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    command = " ".join(["pytest", "-m", "forensics", *arguments])
    return "\n".join(
        [*lines, "", f"`{command}`: {wall:.0f} s of wall time, {peak:.0f} MiB resident at most."]
    )


def main() -> int:
    """Run the main job, print the table; pytest's exit code."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--into", type=Path, metavar="FILE", help="write between its markers")
    own, arguments = parser.parse_known_args()
    set_environment()
    stages, began = Stages(), time.monotonic()
    with stages.stage("import"):
        for library in ("torch", "transformers", "hypothesis"):
            import_module(library)
    code = pytest.main(["-m", "forensics", *arguments], plugins=[stages])
    with stages.stage("rest"):
        text = table(dict(stages.costs), arguments, time.monotonic() - began)
    sys.stdout.write(f"\n{text}\n")
    if own.into:
        write_between(own.into, "main job time", text)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
