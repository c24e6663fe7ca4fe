"""A record and a baseline on disk, for tests of the commands that read them."""

from pathlib import Path

from precision_lib.cli import main
from precision_lib.compare.baseline import write_baseline
from precision_lib.jsonio import append_line, write_json
from tests.unit import small_blocks as small
from tests.unit.small_blocks import Block, whole


class Files:
    """A record and a baseline in a directory, as a run leaves them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.report, self.baseline = directory / "report.json", directory / "cpu.json"
        self.markdown = directory / "summary.md"
        self.put(whole())
        write_baseline(self.baseline, small.baseline(small.known(whole())))

    def put(self, block: Block, *failed: str) -> None:
        tests = [{"nodeid": name, "outcome": "failed"} for name in failed]
        tests.append({"nodeid": "tests/passed.py::test", "outcome": "passed"})
        report = {"exitcode": int(bool(failed)), "tests": tests, "precision": block}
        write_json(self.report, report)

    def gate(self, *more: str) -> int:
        return main(["gate", str(self.report), f"--baseline={self.baseline}", *more])

    def begin(self, run: str, record: str = "report.json") -> None:
        expected = whole()["expected"]
        append_line(
            self.directory / "cells.jsonl", {"run": run, "record": record, "expected": expected}
        )

    def finish_cell(self, run: str) -> None:
        append_line(self.directory / "cells.jsonl", {"run": run, **whole()["cells"][0]})
