"""Failures of one cause are one block with a list of ids; severities and notes of a run."""

from pathlib import Path
from types import SimpleNamespace

from precision_lib.plugin.grouping import by_cause
from tests.unit.suite_runs import run_on


def report(name: str, cause: str = "") -> SimpleNamespace:
    properties = [("cause", cause)] if cause else []
    return SimpleNamespace(nodeid=name, user_properties=properties)


def test_reports_are_grouped_by_cause_in_the_order_of_their_first() -> None:
    reports = [report("a", "x"), report("b"), report("c", "x"), report("d")]
    assert [[r.nodeid for r in group] for group in by_cause(reports)] == [["a", "c"], ["b"], ["d"]]


SUM_FIRST = """
import torch
def masked_mean(x, mask):
    return torch.where(mask, x.float(), 0).sum().detach() / mask.sum().clamp(min=1)
def whiten(x, mask):
    return x.float()
"""


def test_a_run_shows_one_block_for_a_cause_and_counts_range_apart(tmp_path: Path) -> None:
    wanted = "masked_mean-near_overflow or whiten-ragged or whiten-single_token or exists-fp32"
    run = run_on(tmp_path, SUM_FIRST, "-k", wanted)
    assert run.returncode == 1, run.stdout
    assert run.stdout.count("values of the result are wrong") == 1
    assert "5 more checks fail so" in run.stdout
    assert "test_values_are_within_their_bound[whiten-single_token-fp32]" in run.stdout
    assert "range: failures where only the range of a format ends; --strict counts" in run.stdout
    assert "note: masked_mean returned a result without a gradient" in run.stdout


def test_a_failure_of_severity_range_fails_a_strict_run_alone(tmp_path: Path) -> None:
    only = ("-k", "masked_mean-near_overflow-bf16")
    assert run_on(tmp_path, SUM_FIRST, *only).returncode == 0
    strict = run_on(tmp_path, SUM_FIRST, "--strict", *only)
    assert strict.returncode == 1
    assert "values of the result are wrong" in strict.stdout


def test_a_missing_gradient_is_a_failure_unless_the_target_says_it_has_none(
    tmp_path: Path,
) -> None:
    source = """
from precision_lib import ppo
def token_logprobs(logits, tokens):
    return ppo.token_logprobs(logits.detach(), tokens)
"""
    only = ("-k", "token_logprobs-gradient_exists-fp32 or token_logprobs-single_token-fp32")
    run = run_on(tmp_path, source, *only)
    assert run.returncode == 1
    assert "token_logprobs returned a result without a gradient: nothing learns" in run.stdout
    said = source + "WITHOUT_GRADIENT = ('token_logprobs',)\n"
    run = run_on(tmp_path, said, *only)
    assert run.returncode == 0, run.stdout
    assert "carries no gradient on purpose (WITHOUT_GRADIENT)" in run.stdout
    run = run_on(tmp_path, source + "WITHOUT_GRADIENT = 'token_logprobs'\n", *only)
    assert run.returncode == 4
    assert "give a tuple of names of the interface" in run.stderr
