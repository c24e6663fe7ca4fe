"""The page: whole, self-contained, loud about what is wrong, and honest about what is not there."""

import copy
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from precision_lib import cli
from precision_lib.compare.comparison import Comparison
from precision_lib.exit_codes import USAGE
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.phases.results import load_results
from precision_lib.record.changes import Change
from precision_lib.record.codec import decode, encode
from precision_lib.record.context import Context
from precision_lib.record.files import load_self_test, load_sweep
from precision_lib.record.self_test import FaultOutcome, SelfTest
from precision_lib.reporting.benchmarks import results_of
from precision_lib.reporting.page import page
from precision_lib.reporting.provenance import alarms, headline, provenance
from precision_lib.reporting.results import Results
from precision_lib.reporting.section import Section
from precision_lib.reporting.sections import sections
from tests.unit import small_blocks as small
from tests.unit.reporting import report_results as given

CHANGE = Change("H1", "x", "kl", "a", 1.0, 2.0, 1.5, "", "r")
WORSE, MESSAGE = encode(CHANGE), CHANGE.message
GATE = encode(Comparison(compared=1).gate("baselines/cpu.json"))
PLACES = ["hypotheses", "verdicts", "regressions", "h1", "h2", "h3", "h4", "h5", "h6"]
PLACES += ["training", "benchmarks", "faults", "method", "provenance"]
#: A record of before H6 has no cell of it.
NOT_IN_THE_RECORD = [
    h for h in HYPOTHESES if not any(c["hypothesis"] == h for c in given.block()["cells"])
]
PICTURES = ["verdicts", "h1_collapse_curve", "h2_rewards", "h3_values", "h4_drift", "h5_mismatch"]
PICTURES += ["h6_absorption", "ppo_curves", "ppo_gain_lost", "benchmarks", "fault_matrix"]
PICTURES = [p for p in PICTURES if p[:2].upper() not in NOT_IN_THE_RECORD]
LARGEST = 5_000_000


def problems(text: str) -> list[str]:
    """What is wrong with a page: sections, pictures, foreign resources, scripts, size."""
    found = []
    places = re.findall(r'<section id="([\w-]+)">', text)
    if places != PLACES:
        found.append(f"sections: {places}")
    found += [f"no anchor to {p}" for p in PLACES if f'href="#{p}"' not in text]
    for image in re.findall(r"<img [^>]*>", text):
        if not re.search(r'alt="[^"]{20,}"', image):
            found.append("a picture without an alternative text")
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    links += re.findall(r"url\(([^)]*)\)|@import (\S+)", text)
    found += [f"foreign: {x[:60]}" for x in links if not str(x).startswith(("data:", "#"))]
    found += ["a script"] if "<script" in text else []
    found += [f"{len(text.encode())} bytes"] if len(text.encode()) >= LARGEST else []
    return found


def part(text: str, place: str) -> str:
    """One section of a page."""
    return text.split(f'<section id="{place}">')[1].split("</section>")[0]


@pytest.fixture(scope="module")
def whole(drawn_results: Path) -> str:
    return (drawn_results / "plots" / "index.html").read_text(encoding="utf-8")


def undrawn(results: Results, output: str) -> str:
    """The page of some results, without the bytes of its pictures, which take time."""
    found = sections(results)
    names = [picture.name for section in found for picture in section.pictures]
    return page(results, found, {name: {"svg": b"", "png": b""} for name in names}, output)


def test_page_is_whole_and_self_contained(whole: str) -> None:
    assert not problems(whole)
    assert '<html lang="en">' in whole
    assert "@media print" in whole
    assert 'role="alert"' not in whole
    for place in PLACES[:-2]:
        missing = place.upper() in NOT_IN_THE_RECORD
        assert ("not measured" in part(whole, place)) == missing


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('<section id="h3">', "<section>"), "sections: "),
        (lambda text: text.replace('href="#h3"', 'href="#"'), "no anchor to h3"),
        (lambda text: re.sub(r'alt="[^"]*"', 'alt=""', text, count=1), "without an alternative"),
        (lambda text: text + '<img alt="' + 30 * "x" + '" src="http://x/y">', "foreign: http"),
        (lambda text: text + '<link href="style.css">', "foreign: style.css"),
        (lambda text: text + "<script>1</script>", "a script"),
        (lambda text: text + " " * LARGEST, "bytes"),
    ],
)
def test_a_page_with_something_missing_or_foreign_is_seen(
    whole: str, change: Any, said: str
) -> None:
    assert said in str(problems(change(whole)))


def test_every_picture_is_there_three_times_with_its_numbers_and_commands(
    drawn_results: Path, whole: str
) -> None:
    files = {file.name for file in (drawn_results / "plots").iterdir()}
    assert files == {f"{p}.{s}" for p in PICTURES for s in ("png", "svg")} | {"index.html"}
    figures = re.findall(r'<figure id="figure-(\w+)">', whole)
    assert figures == PICTURES
    for after in whole.split("<figure ")[1:]:
        table, command = after.index("<table"), after.index("<pre")
        assert 0 < after.index("<figcaption>") < table < command
        assert "analyze --results_dir results --output_dir plots</pre>" in after[command:]
    assert "--seeds 0 1 2 3 4 5 --max_steps 150" in part(whole, "training")
    assert "--clean_runs 200" in part(whole, "faults")
    assert str(drawn_results.parent) not in whole


def test_provenance_names_the_overrides_that_were_set() -> None:
    block = given.block()
    block["context"]["overrides"] = {"NVIDIA_TF32_OVERRIDE": "1", "CUBLAS_EMULATION_STRATEGY": None}
    table = provenance(Results("results", report=small.record(block))).tables[0]
    assert ("NVIDIA_TF32_OVERRIDE", "1") in table.rows
    assert "CUBLAS_EMULATION_STRATEGY" not in {row[0] for row in table.rows}


def test_page_holds_words_limits_and_provenance(whole: str) -> None:
    block = given.block()
    for h in block["hypotheses"]:
        assert h["verdict"] in part(whole, "hypotheses")
    assert "No baseline was given." in part(whole, "regressions")
    assert "0.316" in part(whole, "method")
    assert block["context"]["checkpoint"]["sha256"] in part(whole, "provenance")
    assert block["context"]["versions"]["torch"] in part(whole, "provenance")
    created = given.report()["created"]
    when = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d %H:%M UTC")
    commit = block["context"]["commit"]["sha"][:12]
    for text in ("embedded", when, block["context"]["device"]["name"], commit):
        assert text in whole.split("</header>")[0]


@pytest.mark.parametrize("name", given.FILES)
def test_one_file_alone_gives_a_page_that_says_what_is_not_measured(
    name: str, tmp_path: Path
) -> None:
    results = load_results(given.write_results(tmp_path / "results", name))
    text = undrawn(results, "out")
    missing = re.findall(r'<p class="missing">(.*?): run <code>(.*?)</code>', text)
    wanted = dict.fromkeys(given.FILES, 12) | {"report.json": 3 + len(NOT_IN_THE_RECORD)}
    assert len(missing) == wanted[name]
    assert not [command for _, command in missing if "results" not in command]
    assert not problems(text)


def test_an_empty_directory_is_refused_with_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["analyze", "--results_dir", str(tmp_path)]) == USAGE
    said = capsys.readouterr().err
    for word in (*given.FILES, "pytest -m forensics", "precision-forensics sweep", "self-test"):
        assert word in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", given.FILES)
@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99}', '{"precision": {}}'])
def test_a_damaged_file_is_named_and_nothing_is_written(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given.write_results(tmp_path, "benchmarks.json")
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert cli.main(["analyze", "--results_dir", str(tmp_path)]) == USAGE
    assert name in capsys.readouterr().err
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("report.json", lambda r: r["precision"]["cells"][0]["evidence"].pop("curve")),
        ("report.json", lambda r: r["precision"].pop("thresholds")),
        ("report.json", lambda r: r["precision"].update(context=[])),
        ("report.json", lambda r: r["precision"]["hypotheses"][0].pop("control")),
        ("sweep.json", lambda r: r["runs"][0]["curves"].pop("reward_mean")),
        ("sweep.json", lambda r: r.pop("context")),
        ("sweep.json", lambda r: r.pop("max_steps")),
        ("benchmarks.json", lambda r: r["benchmarks"][0]["extra_info"].pop("kind")),
        ("benchmarks.json", lambda r: r.pop("machine_info")),
        ("self_test.json", lambda r: r["faults"][0].pop("caught")),
    ],
)
def test_a_file_that_lacks_a_field_is_named_and_nothing_is_written(
    name: str, spoil: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(given.FILES[name]())
    spoil(content)
    given.write_results(tmp_path, name, **{name.removesuffix(".json"): content})
    assert cli.main(["analyze", "--results_dir", str(tmp_path)]) == USAGE
    said = capsys.readouterr().err
    assert name in said
    assert "Traceback" not in said
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"planted_fault": "k3_as_textbook"}, "PLANTED FAULT: k3_as_textbook"),
        ({"complete": False}, "INCOMPLETE"),
        ({"expected": [["H1", "mine"]]}, "INCOMPLETE: not measured: H1 mine"),
        ({"regressions": [WORSE]}, "REGRESSIONS: 1"),
    ],
)
def test_what_is_wrong_with_a_record_stands_on_top_in_big_words(
    change: dict[str, Any], said: str
) -> None:
    results = Results("results", report=small.record(given.block() | change))
    assert said in " ".join(alarms(results))
    text = page(results, [], {}, "out")
    assert said in text.split('role="alert"')[1].split("<nav")[0]
    assert not alarms(Results("results", report=given.record()))


def test_a_quick_run_a_control_an_unfinished_sweep_and_a_missed_fault_are_said() -> None:
    report = given.report()
    report["precision"]["context"]["budget"] = "quick"
    report["precision"]["hypotheses"][2]["control"]["is_null"] = False
    sweep = replace(load_sweep(given.SWEEP), complete=False)
    lost = decode(FaultOutcome, given.fault("lost", outcome="missed"))
    self_test = SelfTest(Context(), (lost,), None)
    record = small.record(report["precision"])
    said = alarms(Results("results", report=record, sweep=sweep, self_test=self_test))
    assert [s.split(":")[0] for s in said] == [
        "CONTROL NOT NULL",
        "A first look (--quick), not the whole budget.",
        "INCOMPLETE SWEEP",
        "SELF-TEST, MISSED",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ["No baseline was given."]),
        ({"gate": GATE}, ["None."]),
        ({"regressions": [WORSE]}, [MESSAGE]),
        ({"gate": GATE | {"obstacles": ["another device"]}}, ["another device"]),
    ],
)
def test_regressions_are_listed_or_said_to_be_none_or_not_looked_for(
    change: dict[str, Any], said: list[str]
) -> None:
    found = regressions(given.block() | change)
    assert [*found.paragraphs, *found.items][-len(said) :] == said
    assert found.alarm is bool(found.items)


def regressions(block: dict[str, Any]) -> Section:
    """The section, of a record with a single cell that is quick to draw."""
    block = block | {"cells": block["cells"][-1:], "hypotheses": []}
    found = sections(Results("results", report=small.record(block)))
    assert found[2].place == "regressions"
    return found[2]


def test_a_record_of_the_core_alone_shows_its_regressions_and_says_what_it_lacks() -> None:
    block = given.block() | {"cells": [], "hypotheses": [], "context": {"seed": 0}}
    block |= {"regressions": [WORSE]}
    results = Results("results", report=small.record(block))
    found = {section.place: section for section in sections(results)}
    assert found["regressions"].items == (MESSAGE,)
    assert found["h1"].missing == "not measured"
    assert ("device", "unknown") in headline(results)


def test_text_of_a_record_is_no_markup() -> None:
    evil = "<script>alert(1)</script>"
    found = Section("h1", evil, (evil,), items=(evil,), missing=evil, command=evil)
    text = page(Results("results"), [found], {}, "out")
    assert evil not in text
    assert text.count("&lt;script&gt;") >= 5


def test_commands_are_those_of_the_record() -> None:
    report = given.report()
    context = report["precision"]["context"]
    context |= {"seed": 3, "budget": "quick", "device": {"class": "h100", "name": "H100"}}
    context["checkpoint"] = {"name": "some/model", "sha256": "0"}
    report["precision"]["planted_fault"] = "k3_as_textbook"
    results = Results("out dir", report=small.record(report["precision"]))
    text = sections(results)[1].command
    wanted = ("'out dir'/report.json", "--seed 3", "--quick", "--gpu", "--model some/model")
    for word in (*wanted, "--plant-fault=k3_as_textbook"):
        assert word in text
    assert ("device", "H100") in headline(results)


@pytest.mark.parametrize(("place", "shown"), [(".", "results"), ("sweep", "results/sweep")])
def test_the_sweeps_command_writes_where_the_sweep_was_found(
    place: str, shown: str, tmp_path: Path
) -> None:
    given.write_results(tmp_path / "results" / place, "sweep.json")
    command = sections(load_results(tmp_path / "results"))[PLACES.index("training")].command
    assert f"sweep --output_dir {shown} --seeds" in command


def test_the_committed_records_make_a_whole_page() -> None:
    """What ``.ci/page`` shows: every section is there, and nothing is wrong with a record."""
    results = Results(
        "results",
        report=given.record(),
        sweep=load_sweep(given.SWEEP),
        benchmarks=results_of(given.committed("benchmarks")),
        self_test=load_self_test(given.ROOT / "docs" / "records" / "self_test.json"),
    )
    assert not problems(undrawn(results, "results/plots"))
    missing = [section.title[:2] for section in sections(results) if section.missing]
    assert missing == NOT_IN_THE_RECORD
    assert not alarms(results)


def test_without_the_packages_that_draw_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "precision_lib.commands.find_spec", lambda name: None if name == "jinja2" else name
    )
    assert cli.main(["analyze", "--results_dir", str(tmp_path)]) == USAGE
    assert (
        'analyze needs jinja2, not installed here: pip install "rlhf-precision-forensics[report]"'
        in (capsys.readouterr().err)
    )
