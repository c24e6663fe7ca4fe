"""Checks that a core is known to fail: data that a maintainer works off.

The hazard. A list of expected failures can hide a new one. So an entry is one exact check; a listed
check that passes is a failure; an entry that matches no check stops the run; the input that failed
is kept and tried first; and the list names the release that it describes.

A file is TOML, causes with their checks::

    target = "trl"
    version = "1.16.0"

    [[cause]]
    kind = "defect"          # or another of KINDS
    reason = "what the core does"
    consequence = "what it does to training"
    link = "where it is reported"          # optional
    covers = ["a regular expression"]      # optional: which new failures are this cause, too

    [cause.tests]
    "test_property_holds[entropy-never_negative-bf16]" = "Case(...), the input, or empty"
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_lib.targets.errors import TargetError

#: What a cause may be, and what that says.
KINDS = {
    "defect": "wrong for input that the framework's own callers pass",
    "format": "16-bit results for 16-bit input",
    "padding": "what stands in padded slots, or an empty mask, reaches the result",
    "definition": "another formula on purpose: an epsilon, a clamp, a refusal",
    "range": "magnitudes that no run has",
    "unexplained": "nobody has looked at it yet",
}


class KnownFailuresError(TargetError):
    """A list of known failures cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Known:
    """One check that is known to fail.

    Attributes:
        test: its exact name, ``test[id]``.
        kind: one of :data:`KINDS`. reason, consequence, link: of its cause.
        input: the case that fails, as it was printed; "" where it is too large.
        covers: of its cause: what a new failure of it matches, in its name or message. Read when
            the list is made again, and never when a run is judged.
    """

    test: str
    kind: str
    reason: str
    consequence: str
    link: str
    input: str
    covers: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownFailures:
    """A list: whose, of which release, and what fails, in the order of the file."""

    target: str = ""
    version: str = ""
    known: tuple[Known, ...] = ()

    def by_test(self) -> dict[str, Known]:
        """Name of the check to its entry."""
        return {entry.test: entry for entry in self.known}


def shipped(name: str) -> Path | None:
    """The list that is shipped for a framework, None where there is none."""
    path = Path(__file__).parent / f"{name}.toml"
    return path if path.is_file() else None


def read_known_failures(path: Path) -> KnownFailures:
    """Read a list.

    Raises:
        KnownFailuresError: when it cannot be read, a field is missing or unknown, or a check is
            listed twice.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        causes = data.get("cause", [])
        strangers = ", ".join(sorted(set(data) - {"target", "version", "cause"}))
        if strangers:
            raise ValueError(f"{strangers} is not understood")
        if not isinstance(causes, list) or not all(isinstance(cause, dict) for cause in causes):
            raise ValueError("write [[cause]], with two brackets: there may be several")
        known = [entry for cause in causes for entry in _entries(cause)]
        failures = KnownFailures(str(data["target"]), str(data.get("version", "")), tuple(known))
    except KeyError as error:
        raise KnownFailuresError(f"{path} has no {error.args[0]!r}") from None
    except OSError as error:
        why = f"{error.strerror or error}: {path.absolute()}"
        raise KnownFailuresError(f"{why}; a relative path begins at the suite") from None
    except ValueError as error:
        raise KnownFailuresError(f"{path}: {error}") from None
    names = [entry.test for entry in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise KnownFailuresError(f"{path} lists {', '.join(twice)} twice")
    return failures


def _entries(cause: Mapping[str, Any]) -> list[Known]:
    unknown = set(cause) - {"kind", "reason", "consequence", "link", "covers", "tests"}
    for name in ("kind", "reason", "consequence", "link"):
        if not isinstance(cause.get(name, ""), str):
            raise ValueError(f"{name} is a {type(cause[name]).__name__}, not a text")
    if unknown or cause["kind"] not in KINDS:
        what = ", ".join(sorted(unknown)) or f"kind {cause['kind']!r}"
        raise ValueError(f"{what} is not understood; a kind is one of {', '.join(KINDS)}")
    covers = _patterns(cause.get("covers", []))
    if not isinstance(cause["tests"], dict):
        raise ValueError("write the checks under [cause.tests], each with its input")
    for name, case in cause["tests"].items():
        if not isinstance(case, str):
            raise ValueError(f"the input of {name} is a {type(case).__name__}, not a text")
    return [
        Known(
            name,
            cause["kind"],
            cause["reason"],
            cause["consequence"],
            cause.get("link", ""),
            case,
            covers,
        )
        for name, case in cause["tests"].items()
    ]


def _patterns(covers: Any) -> tuple[str, ...]:
    if not isinstance(covers, list) or not all(isinstance(one, str) for one in covers):
        raise ValueError(f"covers is {covers!r}, not a list of regular expressions")
    for one in covers:
        try:
            re.compile(one)
        except re.error as error:
            raise ValueError(f"covers {one!r}: {error}") from None
    return tuple(covers)


def check_against(
    found: KnownFailures, functions: Mapping[str, str], offered: Iterable[str], path: Path
) -> None:
    """Refuse entries that match no check of this core, which has the functions ``offered``.

    ``functions``: check to the function that it is of.

    Raises:
        KnownFailuresError: naming them.
    """
    strangers = [entry.test for entry in found.known if entry.test not in functions]
    if strangers:
        raise KnownFailuresError(
            f"{path} lists {len(strangers)} that match no check, first {strangers[0]!r}; see "
            "pytest --collect-only -q"
        )
    gone = Counter(functions[entry.test] for entry in found.known)
    for function in sorted(set(gone) - set(offered)):
        raise KnownFailuresError(
            f"{path} lists {gone[function]} checks of {function}, which {found.target} does not "
            "offer any more: offer it again, or take them off the list"
        )
