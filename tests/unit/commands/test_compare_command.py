"""``gate --compare``: what is different about two runs, and what of that is not noise.

The hazard. Two records differ in thousands of digits; a comparison that names them all, or that
leaves out what it could not compare, is of no use.
"""

import copy
from pathlib import Path

import pytest

from precision_lib.cli import main
from precision_lib.jsonio import write_json
from tests.unit import small_blocks as small
from tests.unit.commands.gate_files import Files
from tests.unit.small_blocks import Block, metric, moved, whole

WORSE = moved(whole(), "H1", "log_ratio_nsr", metric(5.0, 0.1))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def compared(files: Files, after: Block, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``gate --compare`` prints of :func:`whole` and another record."""
    other = files.directory / "after.json"
    write_json(other, {"precision": after})
    assert main(["gate", str(other), "--compare", str(files.report)]) == 0
    return capsys.readouterr().out


def test_compare_of_the_same_says_so_three_times(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    out = compared(files, whole(), capsys)
    assert out.count("the same in both") == 3
    assert (
        f"metrics beyond both intervals and the noise floor, of {8 * 5 + 10 + 2}" in out
        or "of " in out
    )


def test_compare_names_context_verdicts_and_metrics(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    after = copy.deepcopy(WORSE)
    after["context"] |= {"seed": 7, "device": {"class": "sm90", "name": "a GPU"}, "threads": 3}
    after["cells"][0]["verdict"] = "healthy"
    after = moved(after, "H4", "accum_err_final", metric(0.01, 0.001), "fp32_bf16_kl")
    lines = compared(files, after, capsys).splitlines()
    assert {
        "device.class: cpu -> sm90",
        "device.name: a processor -> a GPU",
        "seed: 0 -> 7",
        "threads: none -> 3",
        "H1 bf16_pure: impaired -> healthy",
    } <= set(lines)
    assert any(x.startswith("worse: H1 bf16_pure: log_ratio_nsr 0.5 -> 5 units") for x in lines)
    assert any(x.startswith("better: H4 fp32_bf16_kl: accum_err_final 0.5 -> 0.01") for x in lines)
    assert "the same in both" not in lines


LEFT_OUT = ("H4", "fp32_bf16_kl")


def test_compare_says_what_it_left_out(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration whose formats changed, fewer elements, cells of one side only."""
    after = whole()
    after["matrix"]["bf16_pure"]["kl"] = "fp32"
    cells = after["cells"]
    after["cells"] = [c for c in cells if (c["hypothesis"], c["configuration"]) != LEFT_OUT]
    after = moved(after, "H1", "log_ratio_nsr", metric(0.5, 0.05, n=10), "fp32_bf16_kl")
    out = compared(files, after, capsys)
    assert "changed matrix: bf16_pure was " in out
    assert "fewer elements: H1 log_ratio_nsr compared 10, the baseline 1000, in fp32_bf16_kl" in out
    assert "unused entries: the baseline has H4 fp32_bf16_kl" in out


@pytest.mark.parametrize("which", ["before", "after"])
def test_compare_with_a_record_that_measured_nothing_says_so(
    which: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = small.block()
    nothing["context"] = {"observed_formats": {}}
    other = files.directory / "nothing.json"
    write_json(other, {"precision": nothing})
    pair = [str(other), str(files.report)]
    before, after = pair if which == "before" else pair[::-1]
    code = main(["gate", after, "--compare", before])
    printed = capsys.readouterr()
    if which == "before":
        assert code == 4
        [line] = printed.err.splitlines()
        assert "the record names no device: it holds no measurement" in line
    else:
        assert code == 0
        assert "floor, of 0\n" in printed.out


def test_compare_needs_two_records(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    none = files.directory / "none.json"
    for before, after in ((files.report, files.baseline), (none, files.report)):
        assert main(["gate", str(after), "--compare", str(before)]) == 4
        [line] = capsys.readouterr().err.splitlines()
        assert "is not a record of this suite" in line or "does not exist" in line
