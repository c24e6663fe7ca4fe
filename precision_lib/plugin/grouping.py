"""One block for each cause of failed conformance checks; the other checks with it are ids."""

from collections.abc import Generator, Sequence
from typing import Any

import pytest

#: Name of the test property that holds the cause.
CAUSE = "cause"
#: Ids that a block lists.
_LISTED = 40


def by_cause(reports: Sequence[Any]) -> list[list[Any]]:
    """The reports in groups of one cause, in the order of their first; without one, each alone."""
    groups: dict[object, list[Any]] = {}
    for report in reports:
        cause = dict(getattr(report, "user_properties", ())).get(CAUSE, report.nodeid)
        groups.setdefault(cause, []).append(report)
    return list(groups.values())


def _others(group: Sequence[Any]) -> tuple[str, str]:
    """Heading and text of the section that names the other checks of a cause."""
    ids = [report.nodeid.partition("::")[2] for report in group[1:]]
    more = [f"and {len(ids) - _LISTED} more"] if len(ids) > _LISTED else []
    return f"{len(ids)} more checks fail so", "\n".join([*ids[:_LISTED], *more])


class OneBlockForACause:
    """A plug-in that shows the first failure of each cause, and lists the others behind it."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        failed = terminalreporter.stats.get("failed", [])
        groups = by_cause(failed)
        for group in groups:
            if len(group) > 1:
                group[0].sections.append(_others(group))
        if failed:
            terminalreporter.stats["failed"] = [group[0] for group in groups]
        try:
            yield
        finally:
            if failed:
                terminalreporter.stats["failed"] = failed
