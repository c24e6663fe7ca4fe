"""The second core of a main job: H4's tests, then conformance checks from the last one on.

The hazard. What another process computed must have the bits that this one would have given. So it
runs the same tests on the same models and the same number of threads, and it is used only where
nothing else can differ: no planted fault, no other core under test, no GPU, no pytest-xdist. What
it does not deliver is computed here, as if it had never run.

This process runs the other hypotheses meanwhile, and takes the checks from the other end.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pytest

from precision_lib.forensics.verdicts import Cell, HypothesisVerdict
from precision_lib.jsonio import Json, to_plain
from precision_lib.phases.second_process import SecondProcess, Send, may_help
from precision_lib.plugin.packaged import CONFORMANCE, FORENSICS
from precision_lib.record.codec import decode, encode
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.conformance.runner import Outcome
    from precision_lib.models.pipeline import Pipeline

#: Its tests run in the second process: after H1 the longest, on tokens of its own.
HYPOTHESIS = "H4"
_FILE = f"test_{HYPOTHESIS.lower()}_"
SECOND: pytest.StashKey["SecondCore"] = pytest.StashKey()
#: Options with which a test must run where the user looks at it.
_ALONE = ("plant_fault", "target", "gpu", "usepdb", "trace", "numprocesses", "setupshow")


def is_wanted(config: pytest.Config, recorder: Recorder, pipeline: "Pipeline") -> bool:
    """Whether a second process would take work off this one, and change no bit."""
    option = config.option
    alone = any(getattr(option, name, None) for name in _ALONE) or hasattr(config, "workerinput")
    hypotheses = {hypothesis for hypothesis, _ in recorder.expected}
    return (
        HYPOTHESIS in hypotheses
        and len(hypotheses) > 1
        and not (alone or option.jobs == 1)
        and may_help("cpu", pipeline.policy.model)
    )


def begin(session: pytest.Session, recorder: Recorder) -> None:
    """Let a second process work while the tests of this session run."""
    second = SecondCore(session, recorder)
    session.config.stash[SECOND] = second
    session.config.pluginmanager.register(second)
    session.config.add_cleanup(second.process.close)


def outcome(config: pytest.Config, check: str, seed: int) -> "Outcome | None":
    """The outcome of a check of the built-in core that has passed there; None: run it here.

    Args:
        seed: of the examples. The second process draws those of seed 0.
    """
    if SECOND not in config.stash or seed != 0:
        return None
    from precision_lib.conformance.runner import Outcome

    counts = config.stash[SECOND].process.get(check)
    return None if counts is None else Outcome(**counts)


@dataclass(eq=False)  # pluggy keeps plug-ins in sets
class SecondCore:
    """A plug-in that lets a second process run some of the tests, and reports what came of them.

    Attributes:
        session: with the items of this run.
        recorder: takes what the tests have measured.
    """

    session: pytest.Session
    recorder: Recorder

    def __post_init__(self) -> None:
        items = [item for item in self.session.items if isinstance(item, pytest.Function)]
        self._tests = [i for i in items if i.path.parent == FORENSICS and i.path.name[:8] == _FILE]
        self._checks = [item.name for item in items if item.path == CONFORMANCE][::-1]
        self.process = SecondProcess(self._work)
        self._reports: list[pytest.TestReport] = []
        self._said = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """Begin, before the first test of this process does."""
        self.process.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> object:
        """Report what the second process has found; None where this one has to run the test."""
        if item not in self._tests:
            return None
        done = self.process.wait_for(item.nodeid)
        if done is None:
            self._say_what_is_missing()
            return None
        _take(self.recorder, done["measured"])
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for plain in done["reports"]:
            hook = item.config.hook
            report = hook.pytest_report_from_serializable(config=item.config, data=plain)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self.session._setupstate.teardown_exact(nextitem)  # what the test before had left to do
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the reports of a test; only the second process looks at them."""
        self._reports.append(report)

    def _say_what_is_missing(self) -> None:
        """Once, on the terminal."""
        reporter = self.session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and not self._said:
            reporter.write_line(
                f"the second process ended early ({self.process.failure}); what it did not deliver "
                "is computed here",
                yellow=True,
            )
        self._said = True

    def _work(self, send: Send) -> None:
        """In the second process: run the tests, then the checks; without a word."""
        tests, self._tests = self._tests, []
        with _unseen(self.session.config):
            for item, following in zip(tests, [*tests[1:], None], strict=True):
                send(item.nodeid, self._ran(item, following))
            for name, counts in self._outcomes():
                send(name, counts)

    def _ran(self, item: pytest.Item, following: pytest.Item | None) -> Json:
        """The whole protocol, with what other plug-ins put around it."""
        before = set(self.recorder.cells), set(self.recorder.hypotheses)
        context, hook = dict(self.recorder.context), item.config.hook
        self._reports.clear()
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        plain = [
            hook.pytest_report_to_serializable(config=item.config, report=report)
            for report in self._reports
        ]
        return {"reports": plain, "measured": _measured(self.recorder, *before, context)}

    def _outcomes(self) -> Iterator[tuple[str, Json]]:
        """Those of checks that pass; a failure is found again where it is reported."""
        from hypothesis import settings

        from precision_lib.conformance.checks import find_check
        from precision_lib.conformance.failure import ConformanceFailure
        from precision_lib.conformance.runner import run
        from precision_lib.targets import BUILT_IN, load_target

        if not settings().derandomize:
            return  # their examples vary
        functions = load_target(BUILT_IN).functions
        for check in map(find_check, self._checks):
            with suppress(ConformanceFailure):
                passed = run(check, functions[check.function], settings())
                yield check.name, asdict(passed)


def _measured(
    recorder: Recorder,
    cells: set[tuple[str, str]],
    hypotheses: set[str],
    context: Mapping[str, Json],
) -> Json:
    """What the recorder holds beyond these, as JSON."""
    fresh = {k: v for k, v in recorder.context.items() if k not in context or context[k] is not v}
    return {
        "context": to_plain(fresh),
        "cells": [encode(cell) for key, cell in recorder.cells.items() if key not in cells],
        "hypotheses": [
            encode(h) for name, h in recorder.hypotheses.items() if name not in hypotheses
        ],
    }


def _take(recorder: Recorder, measured: Json) -> None:
    """Put what another process has measured into the recorder; it is in ``cells.jsonl`` already."""
    recorder.context |= measured["context"]
    for cell in (decode(Cell, plain) for plain in measured["cells"]):
        recorder.cells[cell.key] = cell
    for verdict in (decode(HypothesisVerdict, plain) for plain in measured["hypotheses"]):
        recorder.hypotheses[verdict.hypothesis] = verdict


@contextmanager
def _unseen(config: pytest.Config) -> Iterator[None]:
    """No output: the terminal and the files of captured output belong to the first process."""
    from precision_lib.plugin.progress_bar import ProgressBar

    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    capture.stop_global_capturing()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    capture.start_global_capturing()
    for plugin in config.pluginmanager.get_plugins():
        if isinstance(plugin, ProgressBar):
            plugin.silence()
    config.pluginmanager.unregister(name="terminalreporter")
    yield
