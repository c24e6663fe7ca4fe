"""Baselines: text that a person can review, that gives back what was measured, or is refused.

The hazard. A baseline is trusted for months. One that was made of half a run, whose digits were
rounded, or that a merge cut off, is wrong for as long.
"""

import difflib
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lib.compare import baseline as baselines
from precision_lib.compare import gate
from precision_lib.compare.baseline import (
    BaselineError,
    baseline_of,
    baseline_path,
    load_baseline,
    write_baseline,
)
from precision_lib.record.files import SCHEMAS, load_record
from precision_lib.record.record import Record
from tests.unit import small_blocks as small
from tests.unit.small_blocks import Block, block, cell, judge, metric, moved, whole

RECORD = Path(__file__).parents[3] / "docs" / "records" / "cpu.json"


@pytest.fixture(scope="module")
def real() -> Record:
    return load_record(RECORD)


def made_of(of: Block) -> baselines.Baseline:
    return baseline_of(small.record(of))


def test_a_baseline_comes_back_as_it_was_and_is_written_the_same_again(
    tmp_path: Path, real: Record
) -> None:
    first, second = tmp_path / "a" / "cpu.json", tmp_path / "b.json"
    for of in (small.record(whole()), real):
        write_baseline(first, baseline_of(of))
        back = load_baseline(first)
        assert back == baseline_of(of)
        write_baseline(second, back)
        assert second.read_bytes() == first.read_bytes()
        assert gate.judge(of, back).exit_code == 0


def test_the_order_of_a_run_does_not_show(tmp_path: Path, real: Record) -> None:
    """pytest -p randomly, or another order of files, makes no difference to review."""
    cells = random.Random(0).sample(real.cells, len(real.cells))
    shuffled = replace(real, cells=tuple(cells))
    for name, of in (("a", real), ("b", shuffled)):
        write_baseline(tmp_path / name, baseline_of(of))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_keys_are_sorted_and_the_text_ends_with_a_line(tmp_path: Path, real: Record) -> None:
    path = tmp_path / "cpu.json"
    write_baseline(path, baseline_of(real))

    def check(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        assert names == sorted(names)

    text = path.read_text()
    json.loads(text, object_pairs_hook=check, parse_constant=pytest.fail)
    assert text.endswith("}\n")
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_one_metric_that_changed_is_one_line_of_a_diff(tmp_path: Path) -> None:
    """With its name and all of its figures on it."""
    after = moved(whole(), "H2", "reward_tie_frac", metric(0.3, 0.01))
    for name, of in (("a", whole()), ("b", after)):
        write_baseline(tmp_path / name, made_of(of))
    old, new = ((tmp_path / name).read_text().splitlines() for name in "ab")
    diff = difflib.unified_diff(old, new, n=0)
    changed = [line for line in diff if line[0] in "+-" and line[1] == " "]
    assert len(changed) == 2
    assert changed[1].strip("+, ").startswith('"reward_tie_frac": {"clusters": 8, "high": 0.31')


@given(value=st.floats(allow_nan=False, allow_infinity=False, width=64))
def test_digits_round_trip(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.getbasetemp() / "digits.json"
    one = block(cell("H1", "bf16_pure", log_ratio_nsr=metric(value)))
    write_baseline(path, made_of(one))
    back = load_baseline(path).cells["H1"]["bf16_pure"].metrics["log_ratio_nsr"].value
    assert (back, math.copysign(1, back)) == (value, math.copysign(1, value))


def test_it_says_of_what_it_is() -> None:
    """Context, matrix and noise floors, and not the evidence that only a record needs."""
    floors = {"H1": {"bf16_pure": metric(0.01)}}
    of = block(cell("H1", "bf16_pure", true_kl=1e-4), noise_floors=floors)
    of["cells"][0]["evidence"]["batch_shift"] = 0.5
    made = small.known(of)
    assert made["device_class"] == "cpu"
    assert made["noise_floors"] == floors
    assert made["matrix"] == of["matrix"]
    for name in ("commit", "device", "seed", "budget", "checkpoint", "reward_model"):
        assert made["context"][name] == of["context"][name]
    kept = made["cells"]["H1"]["bf16_pure"]
    assert set(kept) == {"verdict", "metrics", "true_kl", "batch_shift"}
    assert kept["metrics"] == of["cells"][0]["metrics"]


def test_it_is_named_after_the_device_class() -> None:
    gpu = {"device": {"class": "sm90", "name": "a GPU"}}
    assert baseline_path(small.record(whole(context=gpu))) == baselines.DIRECTORY / "sm90.json"
    nothing = whole()
    del nothing["context"]["device"]
    with pytest.raises(BaselineError, match="names no device: it holds no measurement"):
        baseline_path(small.record(nothing))


@pytest.mark.parametrize(
    "of",
    [
        whole(context={"budget": "quick"}),
        whole(conformance={}),
        whole() | {"cells": whole()["cells"][1:], "expected": whole()["expected"][1:]},
        block(conformance=small.core()),
    ],
    ids=["quick", "no core", "selection", "target"],
)
def test_a_part_of_the_main_job_does_not_replace_the_whole(of: Block) -> None:
    """-k makes a run that is complete, of one cell; its baseline is refused unless it is named."""
    with pytest.raises(BaselineError, match=r"a part of the main job .* needs --baseline FILE"):
        baseline_path(small.record(of))


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (whole(planted_fault="k3_in_bf16"), "k3_in_bf16 was planted: this is not a measurement"),
        (block(), "the run measured nothing"),
        (
            block(cell("H1", "bf16_pure"), expected=[("H1", "bf16_pure"), ("H1", "fp32_baseline")]),
            "the run is not complete: run it again, to its end",
        ),
    ],
)
def test_no_baseline_is_made_of_what_is_no_measurement(of: Block, message: str) -> None:
    with pytest.raises(BaselineError, match=message):
        made_of(of)


def test_a_baseline_of_a_core_alone_is_one() -> None:
    of = block(conformance=small.core("mine", gae=small.counts(worst=math.inf)))
    assert judge(small.parsed(of), small.known(of)).exit_code == 0
    assert made_of(of).cells == {}


def a_baseline(**changes: Any) -> str:
    return json.dumps({"schema": SCHEMAS["baseline"]} | small.known(whole()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (a_baseline()[:-20], r"b.json cannot be read: "),
        (a_baseline().replace("0.5", "NaN"), r"cannot be read: NaN is not strict JSON"),
        (a_baseline().replace("0.5", "Infinity"), r"cannot be read: Infinity is not strict JSON"),
        ("", r"cannot be read: "),
        ("[1, 2]", r"b.json is not a baseline; `pytest -m forensics --update-baseline` writes one"),
        ("{}", r"is not a baseline"),
        ('{"precision": {"schema": 1}}', r"is not a baseline"),
        (a_baseline(schema=4), r"has schema 4, this version reads .*baseline/1 to 3; upgrade"),
        (a_baseline(schema="1"), r"has schema '1', this version reads"),
        (a_baseline(schema="precision-forensics/record/3"), r"has schema .*record/3', this"),
    ],
)
def test_what_is_not_a_baseline_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(BaselineError, match=message):
        load_baseline(path)


def test_a_baseline_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match=r"none.json does not exist; .* writes one"):
        load_baseline(tmp_path / "none.json")
    with pytest.raises(BaselineError, match="cannot be read"):
        load_baseline(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BaselineError, match="cannot be read"):
        load_baseline(tmp_path / "binary.json")


@given(cut=st.integers(1, len(a_baseline()) - 1))
def test_a_baseline_cut_off_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_text(a_baseline()[:-cut])
    with pytest.raises(BaselineError):
        load_baseline(path)


def test_a_record_is_no_baseline_and_a_baseline_no_record(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="is not a baseline"):
        load_baseline(RECORD)
    write_baseline(tmp_path / "b.json", made_of(whole()))
    with pytest.raises(ValueError, match="is not a record of this suite"):
        load_record(tmp_path / "b.json")
