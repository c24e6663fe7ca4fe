"""Wiring between pytest and the gate: --baseline, --update-baseline, --markdown.

The hazard. pytest's exit code is what CI looks at: a run that could not be compared with its
baseline must not end with 0, and a baseline must not be written by a run that was red.
"""

import re

import pytest

from precision_lib.compare import baseline as baselines
from precision_lib.compare.gate import judge
from precision_lib.jsonio import write_text
from precision_lib.record.recorder import Recorder
from precision_lib.reporting.gate import pull_request

BASELINE = pytest.StashKey[baselines.Baseline]()
#: What became of --update-baseline and --markdown, as lines.
NOTES = pytest.StashKey[list[str]]()


def configure(config: pytest.Config) -> None:
    """Read the baseline before anything is measured."""
    file, update = config.getoption("baseline"), config.getoption("update_baseline")
    own = config.getoption("quick") or config.getoption("target") or swept(config)
    if update and own and not file:
        raise pytest.UsageError(
            "--update-baseline: a baseline of --quick, --target or a sweep needs --baseline FILE, "
            "or it would replace that of the whole main job"
        )
    if file and not update:
        try:
            config.stash[BASELINE] = baselines.load_baseline(file)
        except baselines.BaselineError as error:
            raise pytest.UsageError(f"--baseline: {error}") from None


def swept(config: pytest.Config) -> bool:
    """Whether the marker expression asks for the sweep."""
    return re.search(r"\bsweep\b", config.getoption("markexpr") or "") is not None


def judge_run(session: pytest.Session, recorder: Recorder) -> None:
    """Compare with the baseline, if there is one; 1 and 2 mean the same to pytest and the gate."""
    config = session.config
    if BASELINE in config.stash:
        comparison = judge(recorder.record(), config.stash[BASELINE])
        recorder.comparison = comparison, str(config.getoption("baseline"))
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = comparison.exit_code


def write_files(session: pytest.Session, recorder: Recorder) -> None:
    """The summary for a pull request, and the baseline of a run that is whole and green."""
    option, green = session.config.getoption, session.exitstatus == pytest.ExitCode.OK
    if option("markdown"):
        try:
            write_text(option("markdown"), pull_request(recorder.record()))
        except OSError as error:
            refuse(session, f"--markdown: {error}")
    if not option("update_baseline"):
        return
    try:
        if not green:
            raise baselines.BaselineError("tests failed: the baseline stays as it was")
        record = recorder.record()
        path = option("baseline") or baselines.baseline_path(record)
        baselines.write_baseline(path, baselines.baseline_of(record))
        note(session, f"baseline: {path}")
    except (baselines.BaselineError, OSError) as error:
        refuse(session, f"--update-baseline: {error}")


def refuse(session: pytest.Session, why: str) -> None:
    """A run that was green ends as one that was asked wrongly; the measurement is kept."""
    session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR
    note(session, why)


def note(session: pytest.Session, line: str) -> None:
    """A line for the end of the run."""
    session.config.stash.setdefault(NOTES, []).append(line)
