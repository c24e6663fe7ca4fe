"""What the gate prints and writes: a verdict, its reasons, one screen, a table that is one.

The hazard. A summary that a reviewer has to scroll, or that a renderer shows as broken text, is
skipped; and then the gate has no reader.
"""

import copy
from dataclasses import replace

import pytest

from precision_lib.compare.directions import DIRECTIONS
from precision_lib.record.changes import Change, Gate, grouped
from precision_lib.record.files import block_of
from precision_lib.record.record import Record
from precision_lib.reporting.gate import gate_lines, pull_request
from tests.unit import small_blocks as small
from tests.unit.small_blocks import Block, cell, counts, judge, known, metric, moved, whole

#: Lines that a pull request shows without scrolling.
SCREEN = 60
#: As in the matrix that ships, single demotions included.
CONFIGURATIONS = [f"configuration_{i}" for i in range(12)]


def judged(run: Block, baseline: Block) -> Record:
    """A run's record with the gate's verdict in it."""
    comparison = judge(run, known(baseline))
    gate = comparison.gate("baselines/cpu.json")
    return replace(small.record(run), regressions=comparison.worse, gate=gate)


def gate_of(record: Record) -> Gate:
    assert record.gate is not None
    return record.gate


def twelve() -> Block:
    """Four hypotheses, as many configurations as a real run has, a core of nine functions."""
    cells = [cell(h, c) for h in DIRECTIONS for c in CONFIGURATIONS]
    functions = {f"function_{i}": counts() for i in range(9)}
    return small.block(*cells, conformance=small.core("core", **functions))


def spoilt(block: Block, factor: float) -> Block:
    """Every metric of every cell that is a factor, by this one."""
    worse = copy.deepcopy(block)
    for c in worse["cells"]:
        for name, how in DIRECTIONS[c["hypothesis"]].items():
            if how.scale in ("ratio", "difference", "magnitude"):
                value = c["metrics"][name]["value"] * factor**how.worse
                c["metrics"][name] = metric(value, value / 100)
    return worse


def test_a_run_without_a_baseline_has_no_verdict() -> None:
    assert gate_lines(small.record(whole())) == []
    assert "### Precision: no baseline was given" in pull_request(small.record(whole()))


def test_a_green_run_says_how_much_it_compared_and_how_near_it_came() -> None:
    block = judged(moved(whole(), "H2", "reward_tie_frac", metric(0.21, 0.02)), whole())
    (first, style), *_, (last, _) = gate_lines(block)
    assert (first, style) == (
        f"gate: no regression, {gate_of(block).compared} comparisons with baselines/cpu.json",
        "green",
    )
    share = gate_of(block).worst.share_of_limit
    assert 0.1 < share < 0.2, "0.01, of t = 6 times 0.02 / 2.36 * sqrt(2) at this many comparisons"
    assert (
        last == f"nearest to its limit: H2 bf16_pure reward_tie_frac, at {share:.0%} of what it may"
    )


def test_a_run_in_which_nothing_moved_is_near_no_limit() -> None:
    assert gate_lines(judged(whole(), whole()))[-1][0].startswith("gate: no regression")


def test_a_red_run_names_every_regression() -> None:
    block = judged(moved(whole(), "H1", "log_ratio_nsr", metric(5.0, 0.1)), whole())
    lines = gate_lines(block)
    assert lines[0][0].startswith("gate: regression, ")
    [(text, style)] = [line for line in lines if line[0].startswith("REGRESSION")]
    assert style == "red"
    assert text == "REGRESSION " + block.regressions[0].message
    assert not any("nearest to its limit" in text for text, _ in lines)


def test_improvements_are_reported_with_how_to_keep_them() -> None:
    block = judged(moved(whole(), "H1", "log_ratio_nsr", metric(0.01, 0.001)), whole())
    texts = [text for text, _ in gate_lines(block)]
    assert texts[0].startswith("gate: no regression")
    assert texts[1].startswith("improved H1 bf16_pure: log_ratio_nsr 0.5 -> 0.01 units, limit ")
    assert texts[2] == "--update-baseline holds on to what has improved"


def test_one_metric_in_several_configurations_is_one_line_with_a_count() -> None:
    worse = moved(whole(), "H1", "log_ratio_nsr", metric(5.0, 0.1))
    both = moved(worse, "H1", "log_ratio_nsr", metric(6.0, 0.1), "fp32_bf16_kl")
    [line] = [t for t, _ in gate_lines(judged(both, whole())) if t.startswith("REGRESSION")]
    assert line.startswith("REGRESSION H1 fp32_bf16_kl: log_ratio_nsr 0.5 -> 6 "), "the largest"
    assert line.endswith(" (and in 1 more configuration)")
    block = judged(spoilt(twelve(), 9.0), twelve())
    lines = [t for t, _ in gate_lines(block) if t.startswith("REGRESSION")]
    assert all(t.endswith(" (and in 11 more configurations)") for t in lines)
    assert len(block.regressions) == 12 * len(lines), "the record has all of them"


def test_metrics_of_the_same_name_are_not_taken_together() -> None:
    """H1 and H4 share a metric and its component; the core's functions share every name."""

    def change(where: str, component: str) -> Change:
        return Change(where, "c", component, "log_ratio_nonfinite_frac", 1.0, 2.0, 1.5, "", "r")

    changes = [change("H1", "kl"), change("H4", "kl"), change("H4", "kl")]
    assert [(c.where, count) for c, count in grouped(changes)] == [("H1", 1), ("H4", 2)]
    assert len(grouped([change("core", "gae"), change("core", "whiten")])) == 2


@pytest.mark.parametrize("factor", [9.0, 1 / 9.0], ids=["worse", "better"])
def test_a_pull_request_with_everything_changed_is_one_screen(factor: float) -> None:
    run = spoilt(twelve(), factor)
    block = judged(run, twelve())
    text = pull_request(block)
    assert len(text.splitlines()) < SCREEN
    assert f"and {len(grouped(changes(block))) - 10} more, see the record" in text
    assert len(gate_lines(block)) < SCREEN


def test_the_terminal_shows_ten_improvements_and_counts_the_others() -> None:
    block = judged(spoilt(twelve(), 1 / 9.0), twelve())
    texts = [text for text, _ in gate_lines(block)]
    assert sum(text.startswith("improved ") for text in texts) == 10
    assert f"and {len(grouped(changes(block))) - 10} more improvements" in texts


def changes(record: Record) -> list[Change]:
    return [*record.regressions, *gate_of(record).improvements]


def test_a_run_in_which_every_metric_compared_less_is_one_screen() -> None:
    run = twelve()
    for c in run["cells"]:
        c["metrics"] = {name: m | {"n": 10} for name, m in c["metrics"].items()}
    block = judged(run, twelve())
    assert len(gate_of(block).obstacles) > 20
    for text in (pull_request(block), "\n".join(text for text, _ in gate_lines(block))):
        assert len(text.splitlines()) < SCREEN
        hidden = len(gate_of(block).obstacles) - 10
        assert f"inconclusive: and {hidden} more, see the record" in text


def test_the_markdown_says_what_the_verdict_rests_on() -> None:
    run = moved(whole(), "H1", "log_ratio_nsr", metric(5.0, 0.1))
    run["cells"].pop()
    text = pull_request(judged(run, whole()))
    lines = text.splitlines()
    assert lines[0] == "### Precision: regression"
    assert lines[2].startswith("11 of 12 cells measured, ")
    assert "comparisons with `baselines/cpu.json`, commit abcdef0123." in lines[2]
    [row] = [line for line in lines if "log_ratio_nsr" in line and line.startswith("|")]
    limit = judge(run, known(whole())).worse[0].limit
    assert [x.strip() for x in row.strip("|").split("|")] == [
        *("H1 bf16_pure", "policy, reference, kl", "`log_ratio_nsr`", "0.5", "5"),
        f"{limit:.4g}",
        "units",
    ]
    assert "- inconclusive: incomplete: 1 cells were not measured: H6 fp32_bf16_kl" in lines
    assert "configuration  H1 KL collapse" in text


def test_every_table_has_as_many_columns_in_each_row_and_stands_by_itself() -> None:
    worse = judged(spoilt(twelve(), 9.0), twelve())
    better = judged(spoilt(twelve(), 1 / 9.0), twelve())
    for block in (worse, better):
        lines = pull_request(block).splitlines()
        rows = [i for i, line in enumerate(lines) if line.startswith("|")]
        assert len(rows) == 2 + 10
        assert {lines[i].count("|") for i in rows} == {8}
        assert rows == list(range(rows[0], rows[-1] + 1))
        assert set(lines[rows[1]]) <= set("|-:")
        assert lines[rows[0] - 1] == lines[rows[-1] + 1] == ""
    folded = pull_request(better)
    assert folded.count("<details>") == folded.count("</details>") == 2


def test_a_planted_fault_is_said_in_the_markdown() -> None:
    block = judged(whole(planted_fault="k3_in_bf16"), whole())
    text = pull_request(block)
    assert "**k3_in_bf16 was planted: nothing here is a measurement.**" in text
    assert text.startswith("### Precision: inconclusive")


def test_what_the_record_holds_of_the_verdict() -> None:
    block = block_of(judged(moved(whole(), "H1", "log_ratio_nsr", metric(5.0, 0.1)), whole()))
    [found] = block["regressions"]
    for name in ("where", "component", "metric", "before", "after", "limit", "message"):
        assert found[name] not in (None, "")
    parts = {"baseline", "verdict", "compared", "obstacles", "improvements", "worst", "blind"}
    assert set(block["gate"]) == {*parts, "moved"}
