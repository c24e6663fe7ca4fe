"""The commit that a record was made from, as documents name it."""

from typing import Any


def commit_of(context: dict[str, Any], digits: int = 40) -> str:
    """The first ``digits`` hexadecimal digits of the commit; "unknown" where the record has none.

    Args:
        context: of a record, see ``records/context.py``.
    """
    commit = context.get("commit") or {}
    return str(commit.get("sha") or "unknown")[:digits]
