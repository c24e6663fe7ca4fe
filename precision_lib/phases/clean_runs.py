"""The gate on runs in which nothing is wrong: how often it is red without a reason.

The same code runs with other seeds, so with other prompts, responses, policies and examples. Each
run is judged against the baseline of the first seed.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from precision_lib.compare.baseline import Baseline, summary_of
from precision_lib.compare.comparison import Comparison
from precision_lib.compare.gate import judge
from precision_lib.environment import set_environment
from precision_lib.forensics.evidence import Evidence
from precision_lib.record.conformance import ConformanceCounts
from precision_lib.record.files import load_record, write_record
from precision_lib.record.record import Record
from precision_lib.record.self_test import CleanJudgements, CleanRuns

#: Examples per conformance check of a clean run; a whole run draws 25.
EXAMPLES = 3
#: The models of a worker process, loaded once.
_MODELS: list[Any] = []


def record_path(directory: Path, seed: int) -> Path:
    """Where the record of a seed lies."""
    return directory / f"seed_{seed}.json"


def measure(
    seeds: Sequence[int], directory: Path, jobs: int, say: Callable[[int], object] = lambda _: None
) -> None:
    """Measure every seed that has no record yet; a killed call continues where it was.

    Args:
        jobs: processes at once, each with its own models.
        say: called with each seed that is done.
    """
    missing = [seed for seed in seeds if not record_path(directory, seed).is_file()]
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(jobs, len(missing)), set_environment) as pool:
        for seed in pool.imap_unordered(_Measure(directory), missing):
            say(seed)


class _Measure:
    """A picklable job of a worker."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, seed: int) -> int:
        write_record(record_path(self.directory, seed), clean_record(seed))
        return seed


def clean_record(seed: int) -> Record:
    """One quick run of everything, with the evidence that the gate reads and no other."""
    import tempfile

    from precision_lib.forensics.budget import budget
    from precision_lib.matrix import all_configurations
    from precision_lib.models.pipeline import load_pipeline
    from precision_lib.phases.main_job import run_main_job

    if not _MODELS:
        _MODELS.append(load_pipeline())
    with tempfile.TemporaryDirectory() as scratch:
        recorder = run_main_job(
            _MODELS[0],
            budget(quick=True, seed=seed),
            all_configurations(None),
            Path(scratch) / "report.json",
            budget_name="quick",
        )
    recorder.conformance = _conformance(seed)
    record = recorder.record()
    cells = (replace(cell, evidence=_kept(cell.evidence)) for cell in record.cells)
    return replace(record, cells=tuple(cells))


def _kept(evidence: Evidence) -> Evidence:
    return Evidence(
        true_kl=evidence.true_kl,
        observed_formats=evidence.observed_formats,
        golden_floor=evidence.golden_floor,
        batch_shift=evidence.batch_shift,
    )


def _conformance(seed: int) -> ConformanceCounts:
    """Counts of all conformance checks of the built-in core, on examples of this seed."""
    from hypothesis import settings

    from precision_lib.conformance.checks import checks
    from precision_lib.conformance.failure import ConformanceFailure
    from precision_lib.conformance.profiles import CI
    from precision_lib.conformance.runner import Outcome, run
    from precision_lib.targets import BUILT_IN, load_target

    target = load_target(BUILT_IN)
    counts = ConformanceCounts(target.name, target.not_offered, "clean", seed)
    profile = settings(CI, max_examples=EXAMPLES, derandomize=False)
    for check in checks():
        try:
            outcome: Outcome | ConformanceFailure = run(
                check, target.functions[check.function], profile, seed
            )
        except ConformanceFailure as failure:
            outcome = failure
        counts.add(check, outcome)
    return counts


def false_alarms(seeds: Sequence[int], directory: Path) -> CleanRuns:
    """Judge every run against the first seed's, and each against the one before it."""
    records = [load_record(record_path(directory, seed)) for seed in seeds]
    first = summary_of(records[0])
    before = ((after, summary_of(earlier)) for earlier, after in pairwise(records))
    return CleanRuns(
        **vars(_judged((record, first) for record in records[1:])),
        baseline_seed=seeds[0],
        last_seed=seeds[-1],
        seeds=tuple(seeds[1:]),
        against_the_run_before=_judged(before),
    )


def _judged(pairs: Iterable[tuple[Record, Baseline]]) -> CleanJudgements:
    comparisons = [judge(record, baseline) for record, baseline in pairs]
    if not comparisons:
        raise ValueError("nothing was compared: give at least two seeds")
    total = sum(comparisons, start=Comparison())
    return CleanJudgements(
        runs=len(comparisons),
        comparisons=total.compared,
        false_alarms=sum(bool(c.worse) for c in comparisons),
        not_compared=sum(bool(c.inconclusive) for c in comparisons),
        alarms=tuple(change.message for change in total.worse),
        worst_share_of_limit=total.worst.share_of_limit,
        worst_metric=total.worst.metric,
    )
