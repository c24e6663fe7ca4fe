"""The benchmark tables: figures as measured, targets judged from them, the document kept whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precision_lib import exit_codes
from tools import benchmarks
from tools.benchmarks import tables
from tools.documents import MarkerError, write_between

ROOT = Path(__file__).parents[3]
STEP = "policy_loss, forward and backward"  # target: 1.2 times the fastest of equal accuracy


def entry(contender: str, kind: str, ms: float, **changes: Any) -> dict[str, Any]:
    """One benchmark as pytest-benchmark writes it, with what the tables read."""
    info = {
        "step": STEP,
        "shape": [64, 1024],
        "format": "fp32",
        "contender": contender,
        "kind": kind,
        "version": "1.2",
        "device": "cpu",
        "input_mib": 250.0,
        "peak_mib": 1.25,
        "error_over_limit": 0.5,
        "bandwidth_gib_s": 20.0,
        "time_over_floor": 3.0,
    }
    return {"extra_info": info | changes, "stats": {"median": ms / 1e3, "iqr": ms / 1e4}}


def results(*entries: dict[str, Any]) -> dict[str, Any]:
    machine = {
        "cpu": {"brand_raw": "Some CPU"},
        "machine": "x86_64",
        "threads": 1,
        "python_version": "3.11.7",
        "torch": "2.13.0",
    }
    return {
        "machine_info": machine,
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [{"extra_info": {}, "stats": {}}, *entries],  # the first is not of the core
    }


def test_table_is_sorted_by_time_with_ratios_to_ours_in_bold() -> None:
    text = tables(
        results(
            entry("this suite", "ours", 2.0),
            entry("this suite", "ours", 3.0, format="bf16", error_over_limit=0.996),
            entry("trl", "peer", 1.0, peak_mib=62.5),
            entry("trl", "peer", 150.4, format="bf16", error_over_limit="inf"),
            entry("verl", "peer", 6.0, error_over_limit=0.0),
        )
    )
    assert text.splitlines() == [
        "Some CPU, 1 thread, Python 3.11.7, torch 2.13.0, 2026-01-02. One read of memory: 20.0 "
        "GiB/s. Interquartile range of the rounds over their median: 10% in the middle row, "
        "10% at most.",
        "",
        f"#### {STEP} [64, 1024]",
        "",
        "| contender | version | fp32 ms | × ours | bf16 ms | × ours | peak MiB | × floor | "
        "error/limit |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        "| trl | 1.2 | 1.00 | 0.50 | 150 | 50.13 | 62.5 / 1.2 | 3.0 / 3.0 | 0.5 / > 1e6 |",
        "| **this suite** | **1.2** | **2.00** | **1.00** | **3.00** | **1.00** | **1.2 / 1.2** | "
        "**3.0 / 3.0** | **0.5 / 0.99** |",
        "| verl | 1.2 | 6.00 | 3.00 | – | – | 1.2 | 3.0 | 0 |",
        "",
        "- Target, fp32: at most 1.2× the time of the fastest of equal accuracy, trl (1.00 ms): "
        "2×, **missed**.",
        "- Target, bf16: at most 1.2× the time of the fastest (none is of equal accuracy), trl "
        "(150 ms): 0.0199×, met.",
    ]


def verdict(*entries: dict[str, Any]) -> str:
    """The lines below the table of a single step."""
    return "\n".join(line for line in tables(results(*entries)).splitlines() if line[:1] == "-")


@pytest.mark.parametrize(("ms", "met"), [(1.2, True), (1.2001, False)])
def test_a_time_target_holds_up_to_its_limit(ms: float, met: bool) -> None:
    text = verdict(entry("this suite", "ours", ms), entry("trl", "peer", 1.0))
    assert ("×, met." in text, "**missed**" in text) == (met, not met)


def test_a_faster_contender_beyond_the_limit_sets_no_bar_but_is_named() -> None:
    text = verdict(
        entry("this suite", "ours", 1.0),
        entry("trl", "peer", 0.5, error_over_limit=47.3),
        entry("plain: textbook formula", "plain", 2.0, error_over_limit=1.0),
    )
    assert "equal accuracy, plain: textbook formula (2.00 ms): 0.5×, met." in text
    assert "The fastest of all, trl: 2×, error 47 times the limit." in text


def test_an_inaccurate_core_meets_no_target() -> None:
    own = entry("this suite", "ours", 0.1, error_over_limit=1.01)
    assert "**missed** (the core's own error" in verdict(own, entry("trl", "peer", 1.0))


def test_a_target_among_peers_passes_over_plain_formulas() -> None:
    text = verdict(
        entry("this suite", "ours", 1.0, step="gae, forward"),
        entry("openrlhf", "peer", 10.0, step="gae, forward"),
        entry("plain: numpy float64 loop", "plain", 2.0, step="gae, forward"),
    )
    assert "0.2× the time of the fastest peer, openrlhf (10.0 ms): 0.1×, met." in text
    assert "The fastest of all, plain: numpy float64 loop: 0.5×." in text


def test_a_target_among_all_also_names_the_fastest_of_equal_accuracy() -> None:
    text = verdict(
        entry("this suite", "ours", 1.0, step="entropy, forward"),
        entry("trl", "peer", 0.5, step="entropy, forward", error_over_limit=480.0),
        entry("verl", "peer", 4.0, step="entropy, forward"),
    )
    assert "the fastest, trl (0.500 ms): 2×, **missed**." in text
    assert "Against the fastest of equal accuracy, verl: 0.25×." in text


@pytest.mark.parametrize(("peak", "met"), [(282.0, True), (282.1, False)])
def test_a_memory_target_counts_buffers_of_the_input(peak: float, met: bool) -> None:
    step = "token_logprobs, forward and backward"
    text = verdict(entry("this suite", "ours", 1.0, step=step, peak_mib=peak))
    assert "one buffer of the logits' size and 32 MiB of memory" in text
    assert text.endswith("MiB, met." if met else "MiB, **missed**.")


def test_without_the_core_there_is_a_table_and_no_verdict() -> None:
    text = tables(results(entry("trl", "peer", 1.0)))
    assert "| trl | 1.2 | 1.00 | – | – | – |" in text
    assert "Target" not in text


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "benchmarks.md"
    path.write_text(
        "before\n<!-- benchmarks cpu: begin -->\nold\n<!-- benchmarks cpu: end -->\nafter\n"
    )
    return path


def test_only_the_text_between_the_markers_is_replaced(document: Path) -> None:
    for _ in range(2):  # the second time over the first
        write_between(document, "benchmarks cpu", "new\n")
        assert document.read_text() == (
            "before\n<!-- benchmarks cpu: begin -->\nnew\n<!-- benchmarks cpu: end -->\nafter\n"
        )
    assert list(document.parent.iterdir()) == [document]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("begin", "start"),
        lambda text: text.replace("end -->", "begin -->"),
        lambda text: text + text,
    ],
    ids=["no_begin", "no_end", "twice"],
)
def test_a_document_with_wrong_markers_stays_as_it_is(
    document: Path, damage: Callable[[str], str]
) -> None:
    document.write_text(damage(document.read_text()))
    before = document.read_text()
    with pytest.raises(MarkerError, match="needs the two lines"):
        write_between(document, "benchmarks cpu", "new")
    assert document.read_text() == before


def test_command_prints_or_rewrites(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(entry("this suite", "ours", 2.0))))
    assert benchmarks.main([str(path)]) == exit_codes.OK
    printed = capsys.readouterr().out
    assert "| **this suite** |" in printed
    assert benchmarks.main([str(path), "--into", str(document)]) == exit_codes.OK
    assert printed in document.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; write one with pytest -m benchmark"),
        ("{", "is not JSON"),
        ("[]", "is no results file of pytest-benchmark"),
        ('{"benchmarks": []}', "holds no benchmark of the PPO core"),
    ],
)
def test_a_useless_file_is_a_usage_error_that_says_what_to_do(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert benchmarks.main([str(path)]) == exit_codes.USAGE
    assert message in capsys.readouterr().err


def test_every_target_has_its_table_in_the_document() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    steps = {goal.step for goal in benchmarks.GOALS}
    assert steps
    assert not [step for step in steps if f"\n#### {step} [" not in text]
