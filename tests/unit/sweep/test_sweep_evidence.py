"""Verdicts of configurations from runs made by hand: what is lost, what is not, what is not known.

The runs of a configuration lie on a wave around its mean, so that the mean is exact and nothing
here hangs on luck; how often luck deceives is asked in ``test_sweep_verdicts.py``.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from precision_lib.forensics.hypotheses import IN_SWEEPS
from precision_lib.forensics.verdicts import HEALTHY, IMPAIRED, INCONCLUSIVE
from precision_lib.matrix import TWIN
from precision_lib.record.codec import encode
from precision_lib.sweep.blocks import Blocks
from precision_lib.sweep.cells import DAMAGE, KL_PATH, LIMIT, OBJECTIVE, STEPS_TO_LEVEL, UNITS
from precision_lib.sweep.curves import RunCurves, run_curves
from precision_lib.sweep.evidence import TooFewRunsError, weigh
from precision_lib.sweep.plan import REFERENCE_RUN
from precision_lib.training.failures import FINAL, KL_EXPLOSION, NAN_LOSS
from tests.unit.sweep_runs import NAMES, a_cell, a_run, lines_of, ramp, runs_of
from tests.unit.sweep_runs import summary_of as summary

LITTLE, MUCH = 0.01, 0.2
Runs = dict[tuple[str, int], RunCurves]


def sweep(means: dict[str, float], deviation: float = LITTLE, seeds: int = 4) -> Runs:
    """Runs of all configurations, gain 1 where nothing else is said, with an effect of the seed."""
    angles = 2 * math.pi * np.arange(seeds) / seeds
    common = 0.1 * (np.arange(seeds) - (seeds - 1) / 2)
    gains: dict[str, Sequence[float]] = {
        name: list(means.get(name, 1.0) + common + math.sqrt(2) * deviation * np.cos(angles + i))
        for i, name in enumerate(NAMES)
    }
    return runs_of(gains)


def test_a_configuration_that_loses_nothing_is_healthy_and_one_that_loses_half_impaired() -> None:
    evidence = weigh(sweep({"bf16_pure": 0.5}))
    verdicts = {name: cell.verdict for name, cell in evidence.by_configuration.items()}
    assert verdicts.pop("bf16_pure") == IMPAIRED
    assert set(verdicts.values()) == {HEALTHY}
    assert set(evidence.by_configuration) == set(NAMES) - {REFERENCE_RUN.name}
    lost = evidence.by_configuration["bf16_pure"].metrics[DAMAGE]
    assert lost.low < 0.5 < lost.high
    assert (lost.n, lost.unit) == (4, UNITS[DAMAGE])
    assert all(cell.seeds_needed is None for cell in evidence.cells)


def test_a_gain_beyond_the_baselines_is_no_damage() -> None:
    cell = weigh(sweep({"bf16_pure": 1.5})).by_configuration["bf16_pure"]
    assert cell.verdict == HEALTHY
    assert cell.metrics[DAMAGE].value < 0


def test_few_seeds_are_inconclusive_and_say_how_many_would_do() -> None:
    """With the same means and spread so many seeds decide, and one less does not."""
    runs = sweep({"bf16_pure": 0.7}, deviation=MUCH, seeds=3)
    evidence = weigh(runs)
    cell = evidence.by_configuration["bf16_pure"]
    assert cell.verdict == INCONCLUSIVE
    assert cell.seeds_needed is not None
    assert cell.seeds_needed > 3
    objective = Blocks(
        np.array([[runs[n, s].objective_gain for s in range(3)] for n in NAMES]), NAMES
    )

    def low(seeds: int) -> float:
        return objective.share(REFERENCE_RUN.name, "bf16_pure", REFERENCE_RUN.name, seeds)[1]

    assert low(cell.seeds_needed) > LIMIT >= low(cell.seeds_needed - 1)


def test_one_seed_decides_nothing_and_has_intervals_without_an_end() -> None:
    evidence = weigh(sweep({"bf16_pure": 0.0}, seeds=1))
    for cell in evidence.cells:
        assert (cell.verdict, cell.seeds_needed) == (INCONCLUSIVE, None)
        assert cell.metrics[DAMAGE].low == -math.inf
    assert set(evidence.deviations.values()) == {None}


@pytest.mark.parametrize("status", [s for s in FINAL if s != "completed"])
def test_a_failed_run_makes_its_configuration_impaired(status: str) -> None:
    runs = sweep({})
    runs["bf16_pure", 1] = a_run("bf16_pure", 1, 1.0, status=status)
    cell = weigh(runs).by_configuration["bf16_pure"]
    assert cell.verdict == IMPAIRED
    assert cell.metrics == {}
    assert cell.statuses == {0: "completed", 1: status, 2: "completed", 3: "completed"}


@pytest.mark.parametrize("gain", [-50.0, math.nan], ids=["far-off", "not-finite"])
def test_a_failed_run_spoils_no_other_configuration(gain: float) -> None:
    """A run that exploded has figures of another size, or none; the others' do not move."""
    runs = sweep({"bf16_fp32_kl": 0.5})
    whole = weigh({key: run for key, run in runs.items() if key[0] != "bf16_pure"})
    bad = summary(a_cell("bf16_pure", 2), gain, status=KL_EXPLOSION, last_step=3)
    runs["bf16_pure", 2] = run_curves(bad, lines_of([1.0, math.nan, -90.0]))
    evidence = weigh(runs)
    for name, cell in whole.by_configuration.items():
        assert evidence.by_configuration[name] == cell
    assert evidence.deviations == whole.deviations
    assert evidence.by_configuration["bf16_pure"].verdict == IMPAIRED


@pytest.mark.parametrize("name", [REFERENCE_RUN.name, TWIN.name])
def test_a_baseline_or_a_twin_that_failed_leaves_nothing_to_compare_with(name: str) -> None:
    runs = sweep({})
    runs[name, 1] = a_run(name, 1, 1.0, status=NAN_LOSS, reason="loss is nan", evaluation={})
    message = rf"{name} has nothing to compare with at seed 1: nan_loss \(loss is nan\)"
    with pytest.raises(TooFewRunsError, match=message):
        weigh(runs)


@pytest.mark.parametrize("name", [REFERENCE_RUN.name, TWIN.name])
def test_without_a_baseline_or_a_twin_nothing_is_compared(name: str) -> None:
    runs = {key: run for key, run in sweep({}).items() if key[0] != name}
    with pytest.raises(TooFewRunsError, match=f"no seed has an ended run of {name}"):
        weigh(runs)


def test_no_run_at_all_and_no_seed_in_common_compare_nothing() -> None:
    gains = {REFERENCE_RUN.name: (1.0,), TWIN.name: (1.0,)}
    apart = runs_of(gains) | {("bf16_pure", 7): a_run("bf16_pure", 7, 1.0)}
    for runs in ({}, apart):
        with pytest.raises(TooFewRunsError, match="no seed has an ended run of fp32_baseline"):
            weigh(runs)


def test_a_seed_that_some_configuration_lacks_is_left_out() -> None:
    runs = sweep({"bf16_pure": 0.5})
    del runs["mixed_recommended", 2]
    evidence = weigh(runs)
    assert evidence.seeds == (0, 1, 3)
    assert evidence == weigh({key: run for key, run in runs.items() if key[1] != 2})


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_where_the_baseline_gained_nothing_nothing_is_decided(gain: float) -> None:
    names = dict.fromkeys(NAMES, gain)
    runs = runs_of({name: (mean, mean) for name, mean in (names | {"bf16_pure": -9.0}).items()})
    runs["bf16_fp32_kl", 0] = a_run("bf16_fp32_kl", 0, gain, status=NAN_LOSS)
    evidence = weigh(runs)
    cells = dict(evidence.by_configuration)
    assert cells.pop("bf16_fp32_kl").verdict == IMPAIRED  # a failure is one all the same
    for cell in cells.values():
        assert (cell.verdict, cell.seeds_needed) == (INCONCLUSIVE, None)
        assert DAMAGE not in cell.metrics
        assert OBJECTIVE in cell.metrics


def test_a_baseline_that_may_have_gained_nothing_decides_nothing() -> None:
    """A gain of 0.3 with a deviation of 1: shares of it are shares of noise."""
    evidence = weigh(sweep(dict.fromkeys(NAMES, 0.3), deviation=1.0))
    assert evidence.baseline_gain > 0
    assert {cell.verdict for cell in evidence.cells} == {INCONCLUSIVE}
    assert evidence.by_configuration["bf16_pure"].metrics[DAMAGE].high == math.inf


def test_the_other_figures_are_differences_to_the_baseline() -> None:
    """KL and reward by hand; the objective is one less a tenth of the other."""
    runs = runs_of(dict.fromkeys(NAMES, (1.0, 1.2)))
    for seed, gain in enumerate((1.0, 1.2)):
        runs["bf16_pure", seed] = a_run("bf16_pure", seed, gain, kl=5.0)
    metrics = weigh(runs).by_configuration["bf16_pure"].metrics
    assert metrics["kl_difference"].value == 3.0
    assert metrics["reward_difference"].value == pytest.approx(0.3)
    assert metrics[OBJECTIVE].value == pytest.approx(0)
    assert metrics["reward_area_difference"].value == 0


def with_curves(rewards: list[float], kls: list[float] | None = None) -> Runs:
    """bf16_pure has these curves, the same for each of three seeds; all others a ramp to 1."""
    runs = runs_of(dict.fromkeys(NAMES, (1.0, 1.0, 1.0)))
    for seed in range(3):
        made = run_curves(runs["bf16_pure", seed].summary, lines_of(rewards, kls))
        runs["bf16_pure", seed] = made
    return runs


def test_steps_to_a_level_count_where_the_level_was_reached() -> None:
    late = [0.0] * 6 + ramp(1.0)[:14]
    metric = weigh(with_curves(late)).by_configuration["bf16_pure"].metrics[STEPS_TO_LEVEL]
    assert (metric.value, metric.n) == (6.0, 3)


def test_a_level_that_was_not_reached_has_no_steps() -> None:
    """Its length would say "at least", and an interval around it would say what nobody knows."""
    evidence = weigh(with_curves([0.0] * 20))
    assert STEPS_TO_LEVEL not in evidence.by_configuration["bf16_pure"].metrics
    assert evidence.by_configuration["mixed_recommended"].metrics[STEPS_TO_LEVEL].value == 0


def test_where_a_baseline_never_rose_no_configuration_has_steps() -> None:
    runs = runs_of(dict.fromkeys(NAMES, (1.0, 1.0)))
    for (name, seed), run in runs.items():
        if name == REFERENCE_RUN.name and seed == 1:
            runs[name, seed] = replace(run, rewards=-run.rewards)
    evidence = weigh(runs)
    assert all(STEPS_TO_LEVEL not in cell.metrics for cell in evidence.cells)
    assert STEPS_TO_LEVEL not in evidence.deviations


def test_a_path_counts_where_it_lies_further_off_than_the_twins() -> None:
    """Paths 3 and 1 nats per sequence from the baseline: 2 beyond chaos."""
    kls = [0.1 * i for i in range(20)]
    runs = with_curves(ramp(1.0), [k + 3 for k in kls])
    for seed in range(3):
        twin = run_curves(runs[TWIN.name, seed].summary, lines_of(ramp(1.0), [k - 1 for k in kls]))
        runs[TWIN.name, seed] = twin
    evidence = weigh(runs)
    assert evidence.by_configuration["bf16_pure"].metrics[KL_PATH].value == pytest.approx(2.0)
    assert evidence.by_configuration["mixed_recommended"].metrics[KL_PATH].value == pytest.approx(
        -1.0
    )
    assert (
        KL_PATH not in evidence.by_configuration[TWIN.name].metrics
    )  # it is what is compared with
    assert evidence.chaos[KL_PATH] == pytest.approx(1.0)


def test_the_spread_of_paths_is_not_thinned_by_the_baselines_own() -> None:
    """Its distance from itself is 0, always. Twin 1, 1, 1 and pure 2, 3, 4: v = 1 / 2."""
    names = (REFERENCE_RUN.name, TWIN.name, "bf16_pure")
    runs = runs_of(dict.fromkeys(names, (1.0, 1.0, 1.0)))
    for name, offsets in ((TWIN.name, (1, 1, 1)), ("bf16_pure", (2, 3, 4))):
        for seed, offset in enumerate(offsets):
            run = runs[name, seed]
            runs[name, seed] = replace(run, kls=run.kls + offset)
    assert weigh(runs).deviations[KL_PATH] == pytest.approx(math.sqrt(1 / 2))


def test_chaos_is_the_rms_of_twin_less_baseline() -> None:
    gains = dict.fromkeys(NAMES, (1.0, 1.0)) | {TWIN.name: (1.3, 0.6)}
    assert weigh(runs_of(gains)).chaos[OBJECTIVE] == pytest.approx(math.sqrt((0.09 + 0.16) / 2))


def test_evidence_is_plain_enough_for_strict_json() -> None:
    import json

    evidence = weigh(sweep({"bf16_pure": 0.5}, seeds=1))
    read = json.loads(json.dumps(encode(evidence), allow_nan=False))
    assert {cell["configuration"] for cell in read["cells"]} == set(NAMES) - {REFERENCE_RUN.name}
    assert read["cells"][0]["metrics"][DAMAGE]["low"] == "-inf"
    assert [h["hypothesis"] for h in read["hypotheses"]] == list(IN_SWEEPS)
