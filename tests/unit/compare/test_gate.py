"""The gate on synthetic records: what is a regression, what only cannot be compared, what is green.

The hazard. Each way to compare less than before, or nothing, must come out as something else than
green, and each metric must be able to turn the gate red.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lib.compare import cells as compared
from precision_lib.compare.comparison import Comparison
from precision_lib.compare.directions import DIRECTIONS
from tests.unit import small_blocks as small
from tests.unit.small_blocks import cell, judge, known, metric, moved, whole

ROOT = Path(__file__).parents[3]


def noise_floor(
    hypothesis: str, configuration: str, metric: str, of: dict[str, Any], before: dict[str, Any]
) -> float:
    """:func:`compared.noise_floor` of a block and the text of a baseline."""
    place = hypothesis, configuration, metric
    return compared.noise_floor(*place, small.record(of), small.baseline(before))


GATED = [(h, m) for h, rows in DIRECTIONS.items() for m, how in rows.items() if how.scale]
NOT_GATED = [(h, m) for h, rows in DIRECTIONS.items() for m, how in rows.items() if not how.scale]


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """The record of a real run of the whole main job."""
    block: dict[str, Any] = json.loads((ROOT / "docs" / "records" / "cpu.json").read_text())
    return block["precision"]  # type: ignore[no-any-return]


def test_identical_records_are_green() -> None:
    judged = judge(whole(), known(whole()))
    assert (judged.exit_code, judged.verdict) == (0, "no regression")
    assert (judged.worse, judged.better, judged.inconclusive) == ((), (), ())
    assert judged.compared == len(GATED) * len(small.CONFIGURATIONS) + 2


def test_a_real_record_is_green_against_itself_and_every_metric_has_a_row(
    real: dict[str, Any],
) -> None:
    judged = judge(real, known(real))
    assert (judged.exit_code, judged.inconclusive, judged.better) == (0, (), ())
    assert judged.compared > 250


def damaged(hypothesis: str, name: str, by: float) -> dict[str, Any]:
    """A metric far on its worse side; with ``by`` = -1 far on its better one."""
    how = DIRECTIONS[hypothesis][name]
    old = small.typical(hypothesis)[name]["value"]
    if how.scale in ("ratio", "step"):
        return metric(old * 64 ** (by * how.worse))
    return metric(abs(old) + 10 * by * how.worse if how.scale != "magnitude" else old * 9**by)


@pytest.mark.parametrize(("hypothesis", "name"), GATED)
def test_every_metric_can_turn_the_gate_red(hypothesis: str, name: str) -> None:
    """One metric of one configuration: exactly that one is reported, with everything about it."""
    worse = damaged(hypothesis, name, 1)
    judged = judge(moved(whole(), hypothesis, name, worse), known(whole()))
    assert (judged.exit_code, judged.inconclusive, judged.better) == (1, (), ())
    [change] = judged.worse
    assert (change.where, change.configuration, change.metric) == (hypothesis, "bf16_pure", name)
    figures = [change.before, change.after, change.limit]
    message = change.message
    assert message.startswith(f"{hypothesis} bf16_pure: {name} {figures[0]:.4g} -> ")
    assert f" -> {figures[1]:.4g} units, limit {figures[2]:.4g} (" in message
    assert message.endswith("; component: " + ", ".join(COMPONENTS[hypothesis]))


COMPONENTS = {
    "H1": ("policy", "reference", "kl"),
    "H2": ("reward",),
    "H3": ("policy", "value"),
    "H4": ("policy", "reference", "kl"),
    "H5": ("policy", "kl", "rollout"),
    "H6": ("policy", "master"),
}


@pytest.mark.parametrize(
    ("hypothesis", "name"), [x for x in GATED if DIRECTIONS[x[0]][x[1]].scale != "exact"]
)
def test_every_improvement_is_reported_and_green(hypothesis: str, name: str) -> None:
    better = damaged(hypothesis, name, -1)
    judged = judge(moved(whole(), hypothesis, name, better), known(whole()))
    assert (judged.exit_code, judged.inconclusive, judged.worse) == (0, (), ())
    [change] = judged.better
    assert (change.where, change.metric) == (hypothesis, name)


@pytest.mark.parametrize(("hypothesis", "name"), NOT_GATED)
def test_what_is_not_gated_changes_nothing(hypothesis: str, name: str) -> None:
    for value in (-1e9, 1e9):
        judged = judge(moved(whole(), hypothesis, name, metric(value)), known(whole()))
        assert (judged.exit_code, judged.worse, judged.better) == (0, (), ())


def test_an_unknown_metric_stops_the_gate() -> None:
    with pytest.raises(ValueError, match="H1 brand_new has no direction"):
        judge(moved(whole(), "H1", "brand_new", metric(1.0)), known(whole()))


def test_a_critical_magnitude_has_no_floor_even_where_fp32_reaches_one(
    real: dict[str, Any],
) -> None:
    """Its best is infinity: FP32's distance from that is no noise, and would pass everything."""
    name = "value_critical_magnitude"
    baseline = known(real)
    assert name in baseline["cells"]["H3"]["fp32_baseline"]["metrics"]
    old = baseline["cells"]["H3"]["bf16_pure"]["metrics"][name]
    fallen = old | {key: old[key] / 10 for key in ("value", "low", "high")}
    [change] = judge(moved(real, "H3", name, fallen), baseline).worse
    assert (change.metric, change.configuration) == (name, "bf16_pure")
    assert 0 < float(change.limit) < old["value"]


def test_every_floor_of_a_real_record_is_finite(real: dict[str, Any]) -> None:
    record, baseline = small.record(real), small.baseline(known(real))
    for c in record.cells:
        for name in c.metrics:
            floor = compared.noise_floor(*c.key, name, record, baseline)
            assert math.isfinite(floor), (c.name, name)


def shifted(block: dict[str, Any], shift: float) -> dict[str, Any]:
    """The block, its damage metrics ``shift`` apart between two batch shapes."""
    for c in block["cells"]:
        c["evidence"]["batch_shift"] = shift
    return block


def test_the_floor_of_a_batch_variance_is_fp32s_own_error_too() -> None:
    """An FP32 damage of 0.5 and an FP32 batch variance of 0.125: the larger counts."""
    cells = [
        cell("H1", c, log_ratio_nsr=metric(0.5), batch_variance=metric(0.125))
        for c in ("bf16_pure", "fp32_baseline")
    ]
    block = small.block(*cells)
    assert noise_floor("H1", "bf16_pure", "batch_variance", block, known(block)) == 0.5


def test_the_floor_is_fp32s_own_error_and_the_devices_noise() -> None:
    """Those of the baseline: a run sets no floor for itself."""
    place = "H1", "bf16_pure", "log_ratio_nsr"
    tight = cell("H1", "bf16_pure", log_ratio_nsr=metric(0.5))
    worse = cell("H1", "bf16_pure", log_ratio_nsr=metric(0.8))
    golden = cell("H1", "fp32_baseline", log_ratio_nsr=metric(0.5))
    assert judge(small.block(worse), known(small.block(tight))).exit_code == 1
    with_golden = known(small.block(tight, golden))
    assert judge(small.block(worse, golden), with_golden).exit_code == 0
    assert noise_floor(*place, small.block(worse), with_golden) == 0.5
    quiet, loud = small.block(worse), shifted(small.block(worse), 0.25)
    before = known(shifted(small.block(tight), 0.25))
    assert noise_floor(*place, loud, known(small.block(tight))) == 0, (
        "a run sets no floor for itself"
    )
    assert noise_floor(*place, quiet, before) == 0.25
    other = "H1", "bf16_pure", "kl_k3_rel_error"
    assert noise_floor(*other, quiet, before) == 0.0
    before["calibration"] = {"floors": {"H1": {"bf16_pure": {"kl_k3_rel_error": 0.125}}}}
    assert noise_floor(*other, quiet, before) == 0.125


@pytest.mark.parametrize(
    ("hypothesis", "name", "golden", "floor"),
    [
        ("H1", "log_ratio_nsr", 0.25, 0.25),
        ("H2", "reward_tie_frac", 0.25, 0.25),
        ("H2", "reward_kendall_tau", 0.75, 0.25),  # whose best is 1
        ("H4", "drift_nats_per_1000_tokens", -0.25, 0.25),
        ("H2", "reward_resolution_median", 0.25, 0.0),  # a step is a property of the format
        ("H1", "k3_negative_frac", 0.25, 0.0),
        ("H3", "value_critical_magnitude", 0.25, 0.0),
    ],
)
def test_fp32s_own_error_is_its_distance_from_the_best(
    hypothesis: str, name: str, golden: float, floor: float
) -> None:
    cells = [cell(hypothesis, c) for c in ("bf16_pure", "fp32_baseline")]
    block = moved(small.block(*cells), hypothesis, name, metric(golden), "fp32_baseline")
    assert noise_floor(hypothesis, "bf16_pure", name, block, known(block)) == floor


def test_the_largest_floor_counts_and_not_their_sum() -> None:
    cells = [cell("H1", c, log_ratio_nsr=metric(0.5)) for c in ("bf16_pure", "fp32_baseline")]
    noisy = shifted(small.block(*cells), 0.25)
    assert noise_floor("H1", "bf16_pure", "log_ratio_nsr", noisy, known(noisy)) == 0.5


def test_the_floor_is_named_in_the_reason() -> None:
    tight = cell("H1", "bf16_pure", log_ratio_nsr=metric(0.5))
    golden = cell("H1", "fp32_baseline", log_ratio_nsr=metric(0.125))
    worse = cell("H1", "bf16_pure", log_ratio_nsr=metric(0.7))
    [change] = judge(small.block(worse, golden), known(small.block(tight, golden))).worse
    assert change.limit == 0.625
    assert "(both intervals at 0.1% per run and a floor of 0.12)" in change.message


def test_a_metric_follows_the_true_kl_at_which_it_was_measured() -> None:
    """At 1 / 1.21 of the KL noise over signal is 1.1 times as large; on the same seed it is not."""

    def at(true_kl: float, nsr: float, seed: int = 1) -> dict[str, Any]:
        found = cell("H1", "bf16_pure", true_kl=true_kl, log_ratio_nsr=metric(nsr))
        return small.block(found, context={"seed": seed})

    baseline = known(at(1.21e-4, 0.5, seed=0))
    assert judge(at(1e-4, 0.55 * (1 - 1e-12)), baseline).exit_code == 0
    [change] = judge(at(1e-4, 0.56), baseline).worse
    assert (change.before, change.after) == pytest.approx((0.55, 0.56), rel=4 * 2.0**-53)
    [change] = judge(at(1e-4, 0.55, seed=0), baseline).worse
    assert change.before == 0.5
    far = judge(at(0.6e-4, 0.5), baseline)
    assert far.exit_code == 2
    assert far.inconclusive[0].startswith(
        "other operating point: H1 bf16_pure at a true KL of 6e-05"
    )


def test_no_evidence_of_a_kl_moves_nothing() -> None:
    old = small.block(cell("H1", "bf16_pure", true_kl=1e-4, log_ratio_nsr=metric(0.5)))
    new = small.block(cell("H1", "bf16_pure", log_ratio_nsr=metric(0.5)))
    assert judge(old, known(new)).exit_code == 0
    assert judge(new, known(old)).inconclusive == (
        "other operating point: H1 bf16_pure at a true KL of None, was 0.0001",
    )


def test_nothing_compared_is_inconclusive() -> None:
    assert Comparison(compared=0).exit_code == 2
    assert Comparison(compared=0).verdict == "inconclusive"
    assert Comparison(compared=1).exit_code == 0
    only_kl = small.block(cell("H1", "bf16_pure", kl_penalty_mean=metric(0.1)))
    judged = judge(only_kl, known(only_kl))
    assert (judged.compared, judged.exit_code) == (0, 2)


def test_a_regression_weighs_more_than_what_could_not_be_compared() -> None:
    worse = moved(whole(), "H1", "log_ratio_nsr", metric(50.0))
    worse["cells"] = [c for c in worse["cells"] if c["hypothesis"] != "H4"]
    judged = judge(worse, known(whole()))
    assert (judged.exit_code, judged.verdict) == (1, "regression")
    assert len(judged.inconclusive) == 2


def test_the_nearest_to_its_limit_is_named() -> None:
    before = whole()
    nearly = moved(before, "H2", "reward_tie_frac", metric(0.23, 0.02))
    nearest = judge(nearly, known(before)).worst
    assert nearest.metric == "H2 bf16_pure reward_tie_frac"
    assert 0 < nearest.share_of_limit < 1
    beyond = moved(before, "H2", "reward_tie_frac", metric(0.9, 0.02))
    assert judge(beyond, known(before)).worst.share_of_limit > 1


@given(
    which=st.sampled_from(GATED),
    damage=st.tuples(st.floats(0, 3), st.floats(0, 3)),
)
def test_more_damage_never_turns_red_to_green(
    which: tuple[str, str], damage: tuple[float, float]
) -> None:
    hypothesis, name = which
    baseline, codes = known(whole()), []
    for by in sorted(damage):
        codes.append(
            judge(
                moved(whole(), hypothesis, name, damaged(hypothesis, name, by)), baseline
            ).exit_code
        )
    assert codes == sorted(codes)


@given(order=st.randoms(use_true_random=False))
def test_the_order_of_cells_and_metrics_changes_nothing(order: Any) -> None:
    shuffled = copy.deepcopy(whole())
    order.shuffle(shuffled["cells"])
    for c in shuffled["cells"]:
        names = list(c["metrics"])
        order.shuffle(names)
        c["metrics"] = {name: c["metrics"][name] for name in names}
    assert judge(shuffled, known(whole())).exit_code == 0
    assert known(shuffled) == known(whole())
