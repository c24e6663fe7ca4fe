"""What the main job is said to take, against the tokens that its models really see."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from precision_lib.forensics import forwards
from precision_lib.forensics.budget import Budget, budget
from precision_lib.forensics.h2 import families
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.forensics.policy_shift import OPERATING_KL
from precision_lib.forensics.work import BACKWARD, DRAWN, Pass, Tokens
from precision_lib.matrix import all_configurations
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.estimate import (
    Estimate,
    Speed,
    duration,
    estimate_main_job,
    measured_speed,
    needed_stages,
    peak_memory,
)
from precision_lib.phases.main_job import MainJob
from precision_lib.phases.progress import Meter, Progress, watched
from precision_lib.phases.work import planned_work
from precision_lib.record.recorder import Recorder
from precision_lib.scoring.forward import rows_per_forward
from tests.unit.small_pipelines import random_pipeline

CONFIGURATIONS = all_configurations(None)
#: A line through two points and its value at one of them: 8 operations of float64.
ROUNDINGS = 8 * 2.0**-53


@pytest.fixture(scope="module")
def models() -> Pipeline:
    return random_pipeline()


@pytest.fixture(scope="module")
def small() -> Budget:
    quick = budget(quick=True)
    freeze = replace(quick.freeze, max_new_tokens=8, num_batches=2, ignore_eos=True)
    return (
        replace(quick, freeze=freeze)
        .changed("H1", seq_lengths=(8, 12), target_kls=(OPERATING_KL, 1e-2))
        .changed("H3", magnitudes=(1.0,), offsets=(0.0, 30.0))
        .changed("H4", length=48, expected=3)
        .changed("H5", length=36, opening=5)
    )


def speed() -> Speed:
    factor = {"bf16": 2.0, "fp32": 1.0, "fp64": 4.0}
    return Speed(base=1.0, growth=0.5, factor=factor, step=16.0, drawn=3.0, rewarded=0.25)


def estimate(**stages: float) -> Estimate:
    return Estimate(stages, 1200.0, 6 * 2.0**30, speed())


@pytest.mark.parametrize("kept_bytes", [2**28, 0])
def test_the_models_see_the_tokens_that_were_planned(
    kept_bytes: int, models: Pipeline, small: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By stage, kind, format and length, exactly: with ``ignore_eos`` no length is left to chance.

    The step of the damage takes each sequence at its own length, so its plan is the most. A drawn
    token does not show how long its sequence will be.
    """
    monkeypatch.setattr(families, "GROUPS", 64)
    monkeypatch.setattr(forwards, "KEPT_LOGITS_BYTES", kept_bytes)
    seen: dict[str, Tokens] = {}

    class Counting(Meter):
        def add(self, done: Pass, tokens: int) -> None:
            seen.setdefault(self._stage, Tokens())[done] += tokens

    meter = Counting(estimate(), lambda _: None)
    recorder = Recorder(Path("unwritten.json"), CONFIGURATIONS)
    job = MainJob(models, small, recorder, meter.begin)
    with watched(models, meter):
        for hypothesis in DECISIONS:
            study = job.study(hypothesis)
            for configuration in CONFIGURATIONS:
                study.cell(configuration)
            study.verdict()
        job.pipeline_damage()
    planned: dict[str, Tokens] = {}
    for stage, work in planned_work(models, small, CONFIGURATIONS).items():
        planned[stage] = Tokens()
        for done, tokens in work.items():
            planned[stage][done._replace(length=1) if done.kind == DRAWN else done] += tokens
    step, at_most = _by_format(seen.pop("damage")), _by_format(planned.pop("damage"))
    assert all(at_most[key] / 2 < tokens <= at_most[key] for key, tokens in step.items())
    assert {kind for kind, _ in at_most.keys() - step.keys()} == {BACKWARD}  # no hook sees it
    assert seen == planned
    assert not models.policy.model.base_model._forward_hooks


def _by_format(work: "Tokens") -> Counter[tuple[str, str]]:
    """Tokens of a stage by kind and format, whatever the length."""
    tokens: Counter[tuple[str, str]] = Counter()
    for done, count in work.items():
        tokens[done.kind, done.fmt] += count
    return tokens


def test_seconds_of_a_token_follow_its_kind() -> None:
    given = speed()
    assert given.seconds(Pass("scored", "fp32", 10), 2) == 2 * (1 + 0.5 * 10)
    assert given.seconds(Pass("scored", "fp64", 10), 2) == 4 * 2 * (1 + 0.5 * 10)
    assert given.seconds(Pass("scored", "fp16", 10), 2) == 2 * (1 + 0.5 * 10)  # was not timed
    assert given.seconds(Pass("trained", "fp32", 10), 1) == 3 * (1 + 0.5 * 10)
    assert given.seconds(Pass("rewarded", "bf16", 10), 8) == 8 * 0.25 * 2
    assert given.seconds(Pass("drawn", "fp32", 10, rows=8), 8) == 16 + 8 * (3 + 0.5 * 10 / 2)


@pytest.fixture
def clock() -> Iterator[int]:
    """One second passes with each look."""
    return itertools.count()


def test_a_forward_is_timed_in_each_format(
    models: Pipeline, small: Budget, clock: Iterator[int]
) -> None:
    """Each timed piece takes one second of this clock, whatever its number of tokens."""
    found = measured_speed(models, small, CONFIGURATIONS, lambda: float(next(clock)))
    short, model = 24, models.policy.model  # half of H4's 48
    rows = rows_per_forward(short, model) // 4
    assert found.factor == {"bf16": 1.0, "fp32": 1.0, "fp64": 1.0}
    assert found.base + found.growth * short == pytest.approx(1 / (rows * short), rel=ROUNDINGS)
    assert found.rewarded == pytest.approx(
        1 / (rows_per_forward(short, models.reward.model) * short), rel=ROUNDINGS
    )
    assert peak_memory(model.device) > sum(p.numel() * 4 for p in model.parameters())


def test_only_what_is_needed_is_counted() -> None:
    assert needed_stages(["H4", "H1"]) == ("H1", "H4")
    assert needed_stages(["H3"]) == ("freeze", "H3")
    assert needed_stages(list(DECISIONS)) == (
        *("H1", "freeze", "H2", "H3", "H4", "H5", "H6", "damage"),
    )


def test_the_sentence_says_time_memory_and_the_first_look() -> None:
    assert estimate(H1=3600.0, H4=7200.0).sentence() == (
        "about 3 h and 6.0 GiB on this device; --quick 20 min"
    )
    first_look = replace(estimate(H1=3600.0), quick_seconds=None)
    assert first_look.sentence() == "about 60 min and 6.0 GiB on this device"


def test_only_the_whole_budget_is_set_against_the_first_look(
    models: Pipeline, small: Budget, clock: Iterator[int]
) -> None:
    first_look = replace(budget(quick=True), settings=small.settings)
    for asked, said in ((first_look, True), (budget(quick=True), False)):
        given = estimate_main_job(models, asked, CONFIGURATIONS, ["H1"], lambda: float(next(clock)))
        assert (given.quick_seconds is not None) is said


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (45, "45 s"), (95, "2 min"), (5300, "88 min"), (5500, "1 h 30 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_progress_at_the_pace_so_far() -> None:
    """100 estimated seconds, 25 of them done in 50: 75 are left, at 2 seconds each."""
    shown: list[Progress] = []
    now = [1000.0]
    meter = Meter(estimate(H1=50.0, H4=50.0), shown.append, lambda: now[0])
    meter.add(Pass("scored", "fp32", 48), 1)  # of a test that belongs to no stage
    assert not shown
    meter.begin("H1")
    now[0] += 50
    meter.add(Pass("scored", "fp32", 48), 1)
    assert (shown[-1].share, shown[-1].left) == (0.25, 150.0)
    assert shown[-1].line() == "main job: H1, 25%, about 2 min left"
    meter.begin("H4")  # the rest of H1 was measured before
    assert (shown[-1].share, shown[-1].left) == (0.5, 100.0)
    meter.add(Pass("scored", "fp32", 48), 1000)  # more than was planned
    assert (shown[-1].share, shown[-1].left) == (1.0, 0.0)
