"""Lists of known failures: strict, exact, read safely, made again from a record."""

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib.conformance.checks import checks, find_check
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.runner import run as run_check
from precision_lib.conformance.written_case import read_case
from precision_lib.record.codec import encode
from precision_lib.record.conformance import CheckFailure, Conformance, FunctionCounts
from precision_lib.targets import INTERFACE, adapters
from precision_lib.targets.frameworks import release
from precision_lib.targets.known_failures import (
    Known,
    KnownFailures,
    KnownFailuresError,
    check_against,
    read_known_failures,
    shipped,
)
from precision_lib.targets.known_failures.refreshed import as_toml, refreshed
from precision_lib.targets.objectives import OBJECTIVES, base
from tests.unit.suite_runs import run_on

KL = "test_values_are_within_their_bound[kl_penalty-near_identical-fp32]"
MEAN = "test_values_are_within_their_bound[masked_mean-large_mean-fp32]"
BOTH = "near_identical-fp32 or large_mean"
PAIR = (
    "Case(inputs={'policy_logprobs': hex_tensor('fp32', (1, 1), '-0x1p+0'), 'ref_logprobs': "
    "hex_tensor('fp32', (1, 1), '-0x1.0002p+0'), 'estimator': 'k3'})"
)
REWARDS = "Case(inputs={'rewards': hex_tensor('fp32', (1, 1), '0x1p+0')})"
#: The textbook k3 fails near the reference, the mean is the core's own.
CORE = """
from precision_lib.ppo import masked_mean

def kl_penalty(policy_logprobs, ref_logprobs, estimator):
    d = policy_logprobs.float() - ref_logprobs.float()
    return {"k1": d, "k2": d * d / 2, "k3": (-d).exp() - 1 + d}[estimator]
"""


def known(test: str, case: str = "", kind: str = "defect") -> Known:
    return Known(test, kind, "it cancels", "noise", "", case)


def written(folder: Path, *entries: Known, target: str = "their_core", version: str = "") -> Path:
    path = folder / "known.toml"
    path.write_text(as_toml(KnownFailures(target, version, entries)))
    return path


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    entries = (
        known(KL, PAIR),
        known("b"),
        Known("c", "definition", 'an "ε"', "x", "https://y", ""),
    )
    path = written(tmp_path, *entries, target="trl", version="1.16.0")
    assert read_known_failures(path) == KnownFailures("trl", "1.16.0", entries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 1", "has no 'target'"),
        ('target = "x"\n[[cause]]\nreason = "y"', "has no 'kind'"),
        ("target = ", "Invalid value"),
        (
            'target="x"\n[[cause]]\nkind="bad"\nreason="y"\nconsequence="z"\n[cause.tests]',
            "kind 'bad' is not understood; a kind is one of defect, format",
        ),
        (
            'target="x"\n[[cause]]\nkind="format"\nreson="y"\nconsequence="z"\n[cause.tests]',
            "reson is not understood",
        ),
        ('target="x"\n[cause]\nkind="format"', r"write \[\[cause\]\], with two brackets"),
        (
            'target="x"\n[[cause]]\nkind="format"\nreason="y"\nconsequence="z"\n'
            "[cause.tests]\na = 1",
            "the input of a is a int, not a text",
        ),
        ('target="x"\ncause = [1]', r"write \[\[cause\]\], with two brackets"),
        ('target="x"\n[[causes]]\nkind="format"', "causes is not understood"),
        ('target="x"\n[[cause]]\nkind=["format"]', "kind is a list, not a text"),
        (
            'target="x"\n[[cause]]\nkind="format"\nreason="y"\nconsequence="z"\ntests=["a"]',
            r"write the checks under \[cause.tests\]",
        ),
    ],
)
def test_a_list_that_is_not_one_says_why(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(KnownFailuresError, match=message):
        read_known_failures(tmp_path / "bad.toml")


def test_a_check_that_stands_twice_is_refused(tmp_path: Path) -> None:
    other = Known("b", "format", "another cause", "", "", "")
    path = written(tmp_path, known("b"), other)
    with pytest.raises(KnownFailuresError, match="lists b twice"):
        read_known_failures(path)


def test_an_entry_that_matches_no_check_is_named() -> None:
    found = KnownFailures("x", "", (known("a"), known("b")))
    check_against(found, {"a": "gae", "b": "gae"}, ["gae"], Path("list.toml"))
    with pytest.raises(KnownFailuresError, match=r"lists 1 that match no check, first 'b'"):
        check_against(found, {"a": "gae"}, ["gae"], Path("list.toml"))


def test_checks_of_a_function_that_is_gone_are_named() -> None:
    """Skipped they would be green, and a core that offers nothing had no failures."""
    found = KnownFailures("x", "", (known("a"), known("b")))
    message = "lists 2 checks of gae, which x does not offer any more"
    with pytest.raises(KnownFailuresError, match=message):
        check_against(found, {"a": "gae", "b": "gae"}, ["whiten"], Path("list.toml"))


def test_a_printed_case_is_read_back_to_the_last_bit() -> None:
    case = read_case(PAIR)
    assert case.inputs["ref_logprobs"].item() == -float.fromhex("0x1.0002p+0")
    assert repr(case) == PAIR
    masked = (
        "Case(inputs={'x': hex_tensor('bf16', (1, 2), '0x1p+0 nan'), 'mask': right_padded([1], 2)})"
    )
    assert repr(read_case(masked)) == masked
    assert read_case(masked).inputs["x"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "Case(inputs={'x': open('/etc/hosts')})",
        "Case(inputs={'x': <bf16 (9, 9): 0x1p+0 ...>})",
        "{'x': 1}",
        "",
        "Case(inputs={'x': 'hello', 'mask': 3})",
        "Case(inputs={'x': hex_tensor('fp32', (1, 1), '0x1p+99999')})",
        "Case(inputs={'x': torch.tensor(5, device='meta')})",
    ],
)
def test_what_is_not_a_printed_case_is_refused_and_not_run(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a printed case|malformed node"):
        read_case(text)


def conformance(
    failures: Mapping[str, CheckFailure], ran: Iterable[str], strict: bool = False
) -> Any:
    """As a record holds it."""
    functions = {"f": FunctionCounts(0, (), 0, 0, 0.0, ran=tuple(ran))}
    counted = Conformance("t", "ci", functions, ("gae",), 0, "2", (), failures, strict=strict)
    return encode(counted)


def record(failed: dict[str, str], ran: tuple[str, ...]) -> Any:
    return conformance({k: CheckFailure((), v, 1.0) for k, v in failed.items()}, ran)


def test_refreshing_keeps_reasons_drops_what_passes_and_admits_what_is_new() -> None:
    old = KnownFailures("t", "1", (known("kept", "old"), known("repaired"), known("not run")))
    found = refreshed(old, record({"kept": "new", "fresh": ""}, ("kept", "repaired", "fresh")))
    assert found.version == "2"
    entries = found.by_test()
    assert set(entries) == {"kept", "fresh", "not run"}
    assert (entries["kept"].reason, entries["kept"].input) == ("it cancels", "new")
    assert entries["fresh"].kind == "unexplained"
    assert found.known[-1].test == "fresh"


def test_refreshing_drops_the_checks_of_a_function_that_is_gone() -> None:
    old = KnownFailures("t", "1", (known("test_x[gae-ordinary-fp32]"), known("test_x[whiten-y]")))
    assert list(refreshed(old, record({}, ("ran",))).by_test()) == ["test_x[whiten-y]"]


def test_the_list_of_one_core_does_not_excuse_another() -> None:
    with pytest.raises(KnownFailuresError, match="the list is of 'trl', the record of 't'"):
        refreshed(KnownFailures("trl", "1", (known("a"),)), record({"a": ""}, ("a",)))


def test_a_long_input_is_not_kept() -> None:
    found = refreshed(KnownFailures(), record({"a": "x" * 401, "b": "x" * 400}, ("a", "b")))
    assert [len(entry.input) for entry in found.known] == [0, 400]


def test_the_kept_input_is_the_drawn_one_and_not_a_variant_of_it() -> None:
    """A property calls with one more masked column; kept as an input it would grow by each run."""
    check = find_check("test_property_holds[masked_mean-masked_contents_do_not_matter-fp32]")
    tensors = "'x': hex_tensor('fp32', (1, 2), '0x1p+0 0x0p+0'), 'mask': right_padded([1], 2)"
    kept = f"Case(inputs={{{tensors}}})"
    with pytest.raises(ConformanceFailure) as caught:
        run_check(check, lambda x, mask: (x * mask).sum() / mask.sum(), first=[read_case(kept)])
    assert caught.value.case_text() == kept


def test_known_failures_end_a_run_with_0_and_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, known(KL, PAIR))
    run = run_on(
        tmp_path, CORE, f"--known-failures={path}", "-k", "near_identical-fp32 or large_mean"
    )
    assert run.returncode == 0, run.stdout
    assert "known failures: 1, strict" in run.stdout
    assert "1 xfailed" in run.stdout
    assert "1 of 1 failures are known" in run.stdout


def test_a_known_failure_that_passes_is_red(tmp_path: Path) -> None:
    path = written(tmp_path, known(KL, PAIR), known(MEAN))
    run = run_on(
        tmp_path, CORE, f"--known-failures={path}", "-k", "near_identical-fp32 or large_mean"
    )
    assert run.returncode == 1
    assert "[XPASS(strict)] known (defect): it cancels" in run.stdout


def test_a_failure_that_is_not_known_is_red(tmp_path: Path) -> None:
    path = written(tmp_path, known(KL, PAIR))
    run = run_on(tmp_path, CORE, f"--known-failures={path}", "-k", "kl_penalty-log_ratio_near_zero")
    assert run.returncode == 1


def test_a_kept_input_is_tried_first_and_another_release_is_said(tmp_path: Path) -> None:
    """The kept input is the one that is reported, whatever else would have been drawn."""
    path = written(tmp_path, known(KL, PAIR.replace("0002p", "0004p")), version="9.9")
    run = run_on(
        tmp_path, CORE, f"--known-failures={path}", "-k", "near_identical-fp32", "-rx", "-vv"
    )
    assert run.returncode == 0
    assert "THE LIST IS OF 9.9" in run.stdout
    assert "0x1.0004p" in (tmp_path / "record.json").read_text()


@pytest.mark.parametrize(
    ("entry", "target", "message"),
    [
        (known("test_values_are_within_their_bound[gae-no_such-fp32]"), "their_core", "no check"),
        (known(KL), "another", "is a list of 'another'"),
        (known(KL, "Case(garbage)"), "their_core", f"the input of {KL}: malformed node"),
        (known(KL, REWARDS), "their_core", "kl_penalty takes policy_logprobs, ref_logprobs, esti"),
    ],
)
def test_a_list_that_does_not_fit_is_a_usage_error(
    entry: Known, target: str, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, entry, target=target)
    run = run_on(tmp_path, CORE, f"--known-failures={path}")
    assert run.returncode == 4
    assert message in run.stderr


@pytest.mark.parametrize("name", adapters.NAMES)
def test_a_shipped_list_fits_its_adapter_and_the_checks(name: str) -> None:
    path = shipped(name)
    assert path is not None
    found = read_known_failures(path)
    assert found.target == name
    framework = importlib.import_module(f"precision_lib.targets.adapters.{name}").FRAMEWORK
    assert release(framework.first) <= release(found.version) < release(framework.below)
    functions = {check.name: check.function for check in checks()}
    offered = [name for name in INTERFACE | OBJECTIVES if base(name) in framework.offered]
    check_against(found, functions, offered, path)
    assert "unexplained" not in {entry.kind for entry in found.known}
    for entry in found.known:
        assert entry.reason
        assert entry.consequence
        function = entry.test.partition("[")[2].partition("-")[0]
        assert base(function) in framework.offered
        if entry.input:
            assert repr(read_case(entry.input)) == entry.input
    assert as_toml(found) == path.read_text()


def test_a_new_failure_gets_the_first_cause_that_covers_it() -> None:
    """By its name or by what it says; a reason that somebody has given stays."""
    first = Known("old", "format", "16 bits", "", "", "", ("-bf16\\]", "result is torch.bfloat16"))
    second = Known("given", "padding", "times 0", "", "", "", ("got nan",))
    old = KnownFailures("t", "1", (first, second))
    failures = {
        "old": ["got nan"],
        "given": ["the result is torch.bfloat16"],
        "new[gae-ragged-bf16]": ["got nan"],
        "new[gae-ragged-fp32]": ["worst", "got nan"],
        "stranger": ["got 1"],
    }
    said = {name: CheckFailure(tuple(what), "", 1.0) for name, what in failures.items()}
    entries = refreshed(old, conformance(said, failures)).by_test()
    kinds = {name: entry.kind for name, entry in entries.items()}
    assert kinds == {
        "old": "format",
        "given": "padding",
        "new[gae-ragged-bf16]": "format",
        "new[gae-ragged-fp32]": "padding",
        "stranger": "unexplained",
    }


@pytest.mark.parametrize("strict", [True, False])
def test_what_fails_no_run_is_on_no_list(strict: bool) -> None:
    old = KnownFailures("t", "1", (known("a"),))
    counted = conformance({"a": CheckFailure((), "", 1.0, "range")}, ("a",), strict)
    assert len(refreshed(old, counted).known) == strict


@pytest.mark.parametrize(
    ("covers", "message"), [('"a"', "covers is 'a', not a list"), ('["("]', r"covers '\('")]
)
def test_a_pattern_that_cannot_be_read_is_refused(
    covers: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "known.toml"
    cause = f'[[cause]]\nkind="format"\nreason="y"\nconsequence="z"\ncovers={covers}\n'
    path.write_text(f'target="x"\n{cause}[cause.tests]\n"a"=""\n')
    with pytest.raises(KnownFailuresError, match=message):
        read_known_failures(path)
