"""The gate on runs in which nothing is wrong: how often it is red without a reason.

The same code runs with other seeds, so with other prompts, responses, policies and examples. Each
run is judged against the baseline of the first seed.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from precision_lib.environment import set_environment
from precision_lib.jsonio import write_json
from precision_lib.records.baseline import summary_of
from precision_lib.records.gate import judge
from precision_lib.records.record import load_record

#: Examples per conformance check of a clean run; a whole run draws 25.
EXAMPLES = 3
#: Of a cell's evidence, what the gate reads.
_KEPT = ("golden_floor", "batch_shift", "true_kl", "observed_formats")
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
        write_json(record_path(self.directory, seed), {"precision": clean_block(seed)})
        return seed


def clean_block(seed: int) -> dict[str, Any]:
    """The ``precision`` block of one quick run of everything, without the evidence for readers."""
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
    block = recorder.block()
    for cell in block["cells"]:
        cell["evidence"] = {k: v for k, v in cell["evidence"].items() if k in _KEPT}
    return block


def _conformance(seed: int) -> Any:
    """Counts of all conformance checks of the built-in core, on examples of this seed."""
    from hypothesis import settings

    from precision_lib.conformance.checks import checks
    from precision_lib.conformance.failure import ConformanceFailure
    from precision_lib.conformance.profiles import CI
    from precision_lib.conformance.runner import Outcome, run
    from precision_lib.records.conformance import ConformanceCounts
    from precision_lib.targets import BUILT_IN, load_target

    target = load_target(BUILT_IN)
    counts = ConformanceCounts(target.name, target.not_offered, "clean", seed)
    profile = settings(CI, max_examples=EXAMPLES, derandomize=False)
    for check in checks():
        try:
            found: Outcome | ConformanceFailure = run(
                check, target.functions[check.function], profile, seed
            )
        except ConformanceFailure as failure:
            found = failure
        counts.add(check, found)
    return counts


def false_alarms(seeds: Sequence[int], directory: Path) -> dict[str, Any]:
    """Judge every run against the first seed's, and each against the one before it.

    Returns:
        ``runs`` and ``comparisons`` judged, ``false_alarms`` (runs with a regression) with
        ``alarms`` (their messages), ``worst_share_of_limit`` with ``worst_metric``; the same under
        ``against_the_run_before``.
    """
    blocks = [load_record(record_path(directory, seed))["precision"] for seed in seeds]
    first = summary_of(blocks[0])
    against_first = _judged((block, first) for block in blocks[1:])
    pairs = ((after, summary_of(before)) for before, after in pairwise(blocks))
    return {
        "baseline_seed": seeds[0],
        "last_seed": seeds[-1],
        "seeds": list(seeds[1:]),
        **against_first,
        "against_the_run_before": _judged(pairs),
    }


def _judged(pairs: Iterator[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    judgements = [judge(block, baseline) for block, baseline in pairs]
    if not judgements:
        raise ValueError("nothing was compared: give at least two seeds")
    share, metric = max(j.worst for j in judgements)
    return {
        "runs": len(judgements),
        "comparisons": sum(j.compared for j in judgements),
        "false_alarms": sum(bool(j.regressions) for j in judgements),
        "not_compared": sum(bool(j.obstacles) for j in judgements),
        "alarms": [c.message for j in judgements for c in j.regressions],
        "worst_share_of_limit": share,
        "worst_metric": metric,
    }
