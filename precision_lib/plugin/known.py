"""Wiring between pytest and the lists of known failures: --known-failures, --update-known-failures.

The hazard. A known failure that is skipped is not known to fail any more. So each is run, its input
first, and marked as a strict expected failure: one that passes turns the run red.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from precision_lib.jsonio import write_text
from precision_lib.plugin import gating
from precision_lib.record.codec import encode
from precision_lib.record.recorder import Recorder
from precision_lib.targets.known_failures import (
    Known,
    KnownFailures,
    KnownFailuresError,
    check_against,
    read_known_failures,
    shipped,
)
from precision_lib.targets.known_failures.refreshed import as_toml, refreshed

if TYPE_CHECKING:
    from precision_lib.targets import Target

LIST = pytest.StashKey[KnownFailures]()
#: As --known-failures: no list, not even the one that is shipped.
NO_LIST = "none"


def configure(config: pytest.Config, target: "Target") -> None:
    """Read the list of this target and refuse what matches no check."""
    from precision_lib.conformance.checks import checks

    option = config.getoption("known_failures")
    path = None if option == NO_LIST else Path(option) if option else shipped(target.name)
    if path is None:
        return
    try:
        known = read_known_failures(path)
        if known.target != target.name:
            raise KnownFailuresError(f"{path} is a list of {known.target!r}")
        functions = {check.name: check.function for check in checks()}
        check_against(known, functions, target.functions, path)
        for one in known.known:
            _check_input(one, functions[one.test], path)
    except KnownFailuresError as error:
        raise pytest.UsageError(f"--known-failures: {error}") from None
    config.stash[LIST] = known


def _check_input(known: Known, function: str, path: Path) -> None:
    from precision_lib.conformance.written_case import read_case_of

    try:
        if known.input:
            read_case_of(known.input, function)
    except ValueError as error:
        raise KnownFailuresError(f"{path}: the input of {known.test}: {error}") from None


def write_list(session: pytest.Session, recorder: Recorder) -> None:
    """Bring the list of ``--update-known-failures`` up to what this run has found."""
    path: Path | None = session.config.getoption("update_known_failures")
    if path is None or not recorder.conformance:
        return
    try:
        old = read_known_failures(path) if path.exists() else KnownFailures()
        new = refreshed(old, encode(recorder.conformance.counted()))
        write_text(path, as_toml(new))
    except (KnownFailuresError, OSError) as error:
        gating.refuse(session, f"--update-known-failures: {error}")
        return
    unexplained = sum(entry.kind == "unexplained" for entry in new.known)
    gone = len(set(old.by_test()) - set(new.by_test()))
    gating.note(
        session,
        f"{path}: {len(new.known)} known failures, {unexplained} unexplained, {gone} left the list",
    )


def header(config: pytest.Config, target: "Target") -> list[str]:
    """How many are known, and of which release."""
    if LIST not in config.stash:
        return []
    known = config.stash[LIST]
    line = f"known failures: {len(known.known)}, strict"
    if known.version != target.version:
        line += f"; THE LIST IS OF {known.version}, what changed since turns red"
    return [line]


def is_strict(config: pytest.Config) -> bool:
    """Whether ``--strict``, an option of pytest itself, was given: it counts ``range`` too."""
    return "--strict" in config.invocation_params.args


def entry(config: pytest.Config, test: str) -> Known | None:
    """What is known of a check."""
    return config.stash[LIST].by_test().get(test) if LIST in config.stash else None


def marks(config: pytest.Config, test: str) -> list[pytest.MarkDecorator]:
    """The strict expected failure of a check, if it is known; an error is no failure."""
    known = entry(config, test)
    if known is None:
        return []
    reason = f"known ({known.kind}): {known.reason}; what passes has to leave the list"
    return [pytest.mark.xfail(strict=True, raises=pytest.fail.Exception, reason=reason)]
