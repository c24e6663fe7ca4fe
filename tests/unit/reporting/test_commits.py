"""Which commit a record names, and what documents say of a record without one."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precision_lib.phases.results import load_results
from precision_lib.record.codec import decode
from precision_lib.record.context import COMMIT_VARIABLE, _commit
from precision_lib.record.sweep import Sweep
from precision_lib.reporting.gate import pull_request
from tests.unit import small_blocks as small
from tests.unit.reporting import report_results as given
from tests.unit.reporting.test_report_page import undrawn
from tools.findings import findings
from tools.training_tables import training_tables

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("value", "sha", "dirty"),
    [(SHA, SHA, False), (f"{SHA}+dirty", SHA, True), ("", None, None), ("+dirty", None, None)],
)
def test_a_copy_without_git_is_of_the_commit_that_the_variable_names(
    value: str, sha: str | None, dirty: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, value)
    assert _commit(tmp_path) == {"sha": sha, "dirty": dirty}
    (tmp_path / ".git").write_text("no repository")
    assert _commit(tmp_path) == {"sha": sha, "dirty": dirty}, "git has no answer"


def test_a_checkout_knows_its_commit_better_than_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, SHA)
    for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{name}", "nobody")
    git = ["git", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "empty"]):
        subprocess.run([*git, *arguments], check=True)
    clean = _commit(tmp_path)
    assert clean["sha"] != SHA
    assert clean["dirty"] is False
    (tmp_path / "new").touch()
    assert _commit(tmp_path) == clean | {"dirty": True}


def page(record: dict[str, Any], tmp_path: Path) -> str:
    contents = {"sweep" if "runs" in record else "report": record}
    names = [f"{name}.json" for name in contents]
    return undrawn(load_results(given.write_results(tmp_path, *names, **contents)), "out")


def read_sweep(record: dict[str, Any]) -> Sweep:
    return decode(Sweep, {k: v for k, v in record.items() if k != "schema"})


#: Document to (record that it is made from, its text).
DOCUMENTS: dict[str, tuple[Callable[[], Any], Callable[[Any, Path], str]]] = {
    "findings": (given.report, lambda record, _: findings(small.record(record["precision"]))),
    "pull request": (
        given.report,
        lambda record, _: pull_request(small.record(record["precision"])),
    ),
    "training": (given.sweep, lambda record, _: training_tables(read_sweep(record))),
    "page of a report": (given.report, page),
    "page of a sweep": (given.sweep, page),
}


@pytest.mark.parametrize("without", [{"commit": {"sha": None, "dirty": None}}, {}])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_say_unknown_of_a_record_without_a_commit(
    document: str, without: dict[str, Any], tmp_path: Path
) -> None:
    made, written = DOCUMENTS[document]
    record = made()
    context = record.get("precision", record)["context"]
    sha = context.pop("commit")["sha"]
    context.update(without)
    text = written(record, tmp_path)
    context["commit"] = {"sha": sha, "dirty": False}
    known = written(record, tmp_path)
    assert sha[:10] in known
    assert sha[:10] not in text
    assert text.count("unknown") > known.count("unknown")
    assert text.count("None") == known.count("None")
