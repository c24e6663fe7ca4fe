"""How far a metric may move: the limit itself, and each scale at it and just beyond.

The hazard. A margin that is too wide passes everything and one that is too narrow cries wolf; both
look like a working gate on the day that they are written.
"""

import math

import pytest

from precision_lib.compare import margins
from precision_lib.compare.directions import DIRECTIONS, Direction, direction
from precision_lib.compare.margins import quantile, widest
from precision_lib.forensics.t_quantile import student_quantile
from tests.unit.small_blocks import margin, metric, outcome, typed

RATIO, SHARE, SIZE, STEP, EXACT = (
    Direction(scale) for scale in ("ratio", "difference", "magnitude", "step", "exact")
)
AGREEMENT = Direction("difference", worse=-1, best=1.0)
CRITICAL = DIRECTIONS["H3"]["value_critical_magnitude"]
#: From a table, to three decimals: one-sided 0.1 % and two-sided 5 %.
T_14, NORMAL, T_7_BOTH = 3.787, 3.090, 2.365
TABLE = 5e-4 / 2.365  # relative error of the least precise of them, rounded to three decimals
#: A quantile, a root and a handful of products of float64, on either side.
ROUNDINGS = 32 * 2.0**-53


@pytest.mark.parametrize(
    ("other", "clusters", "want"),
    [
        (0.0, 8, 1 + T_14 / T_7_BOTH * 0.1),
        (0.1, 8, 1 + T_14 / T_7_BOTH * 0.1 * math.sqrt(2)),
        (0.0, None, 1 + NORMAL / 1.95996 * 0.1),
    ],
)
def test_the_limit_is_students(other: float, clusters: int | None, want: float) -> None:
    """Twice eight clusters: 14 degrees of freedom; none named: normal."""
    before, after = (metric(1.0, half, clusters=clusters) for half in (0.1, other))
    m = margin(before, after, SHARE, comparisons=1)
    assert abs((m.limit - 1) / (want - 1) - 1) < 2 * TABLE, (m.limit, want)
    assert m.improved == pytest.approx(2 - m.limit, rel=2**-50)


def test_the_probability_is_shared_by_all_comparisons_of_a_run() -> None:
    for many in (1, 10, 300):
        assert quantile(many, 7) == student_quantile(7, 1 - 2 * margins.FALSE_ALARMS / many)
    assert quantile(300, 7) > quantile(300, 50) > quantile(300, None) > quantile(1, None)


@pytest.mark.parametrize(("how", "value"), [(RATIO, 0.5), (SHARE, 0.2), (AGREEMENT, 0.9)])
def test_a_value_at_its_limit_passes_and_the_next_one_fails(how: Direction, value: float) -> None:
    before = metric(value, value / 20)
    limit = margin(before, metric(value), how, 100).limit
    worse = math.copysign(math.inf, how.worse)
    assert outcome(before, metric(limit), how, 100) == "same"
    assert outcome(before, metric(math.nextafter(limit, worse)), how, 100) == "regression"


@pytest.mark.parametrize(("how", "value"), [(RATIO, 0.5), (SHARE, 0.2), (AGREEMENT, 0.9)])
def test_an_improvement_begins_as_far_away(how: Direction, value: float) -> None:
    before = metric(value, value / 20)
    edge = margin(before, metric(value), how, 100).improved
    better = math.copysign(math.inf, -how.worse)
    assert outcome(before, metric(edge), how, 100) == "same"
    assert outcome(before, metric(math.nextafter(edge, better)), how, 100) == "improvement"


@pytest.mark.parametrize("how", [RATIO, SHARE, AGREEMENT, SIZE, EXACT, STEP, CRITICAL])
def test_the_floor_moves_the_limits_apart(how: Direction) -> None:
    """Except where 0 holds by construction."""
    before, after = metric(0.5, 0.05), metric(0.5)
    narrow, wide = margin(before, after, how, 1), margin(before, after, how, 1, floor=0.125)
    assert (wide.limit - narrow.limit) * how.worse == pytest.approx(0.125)
    assert (narrow.improved - wide.improved) * how.worse == pytest.approx(0.125)
    nothing = metric(0.0)
    assert margin(nothing, nothing, EXACT, 1, floor=0.125).limit == 0


def test_a_ratio_is_compared_as_a_factor() -> None:
    """A hundredfold error of 1e-6 is a regression although it is small beside any other metric."""
    assert outcome(metric(1e-6, 1e-7), metric(1e-4, 1e-5), RATIO, 300) == "regression"
    assert outcome(metric(1.0, 0.1), metric(1.0001, 0.1), RATIO, 300) == "same"
    factors = [margin(metric(v, v / 10), metric(v), RATIO, 300).limit / v for v in (1e-6, 1.0, 1e6)]
    assert factors == pytest.approx([factors[0]] * 3, rel=ROUNDINGS)


def test_a_ratio_that_begins_at_zero_is_compared_as_a_difference() -> None:
    assert outcome(metric(0.0), metric(1e-9), RATIO) == "regression"
    assert outcome(metric(0.0), metric(0.0), RATIO) == "same"
    assert outcome(metric(1e-9), metric(0.0), RATIO) == "improvement"


def test_a_ratio_whose_interval_reaches_zero_is_compared_as_a_difference() -> None:
    """It has no logarithm, and an interval of more than 100 % allows a difference of as much."""
    wide = metric(0.1, 0.11)
    assert outcome(wide, metric(0.2, 0.01), RATIO) == "same"
    assert outcome(wide, metric(2.0, 0.01), RATIO) == "regression"


@pytest.mark.parametrize(("clusters", "most"), [(8, 9.02), (12, 4.98), (32, 2.36)])
def test_a_run_cannot_hide_behind_an_interval_of_its_own(clusters: int, most: float) -> None:
    """The cap is the root of the F quantile at 0.001 / 278, here from tables of mpmath."""
    assert widest(278, clusters) == pytest.approx(most, rel=2e-3)
    before = metric(0.5, 0.05, clusters=clusters)
    wide = metric(500.0, 600.0, clusters=clusters)  # one prompt went wrong by a thousand
    assert outcome(before, wide, RATIO, 278) == "regression"
    assert outcome(before, wide, SHARE, 278) == "regression"
    s0 = margins.standard_error(typed(before))
    capped = quantile(278, 2 * clusters - 2) * s0 * math.hypot(1, widest(278, clusters))
    assert margins.allowance(typed(before), typed(wide), 278) == pytest.approx(
        capped, rel=ROUNDINGS
    )
    same = quantile(278, 2 * clusters - 2) * s0 * math.sqrt(2)
    got = margins.allowance(typed(before), typed(wide), 278, same_seed=True)
    assert got == pytest.approx(same, rel=ROUNDINGS)


def test_new_events_of_a_share_that_was_zero_are_a_count() -> None:
    """t^2 of n elements, whatever the run says of its own interval."""
    nothing = metric(0.0) | {"unit": "share of tokens", "n": 1000}
    most = quantile(1, 14) ** 2 / 1000
    for half in (0.0, 1.0):
        after = metric(most, half) | {"unit": "share of tokens", "n": 1000}
        assert outcome(nothing, after, SHARE) == "same"
        after["value"] = math.nextafter(most, 1)
        assert outcome(nothing, after, SHARE) == "regression"


def test_a_step_may_double_and_no_more() -> None:
    """2 ** -7 -> 2 ** -6 is the next binade; -> 2 ** -5 is a format with fewer digits."""
    old = metric(2.0**-7)
    got = {k: outcome(old, metric(2.0**k), STEP, 300) for k in (-9, -8, -7, -6, -5)}
    assert got == {
        -9: "improvement",
        -8: "same",
        -7: "same",
        -6: "same",
        -5: "regression",
    }


def test_what_is_zero_by_construction_may_not_be_anything_else() -> None:
    smallest = 5e-324
    assert outcome(metric(0.0), metric(0.0), EXACT) == "same"
    assert outcome(metric(0.0), metric(smallest, 1.0), EXACT, 300) == "regression"
    assert outcome(metric(0.5), metric(0.0), EXACT) == "improvement"
    assert outcome(metric(0.2, 0.02), metric(0.21, 0.02), EXACT) == "same"
    assert outcome(metric(0.2, 0.02), metric(0.9, 0.02), EXACT) == "regression"


def test_a_magnitude_has_its_best_in_the_middle() -> None:
    """-0.3 -> 0.3 is as bad, -0.3 -> 0 an improvement though it rose, -0.3 -> -0.9 worse."""
    old = metric(-0.3, 0.03)
    got = {x: outcome(old, metric(x, 0.03), SIZE) for x in (0.3, 0.0, -0.9, 0.9)}
    assert got == {0.3: "same", 0.0: "improvement", -0.9: "regression", 0.9: "regression"}
    m = margin(old, metric(-0.9, 0.03), SIZE, 1)
    assert (m.before, m.after) == (0.3, 0.9)


def test_less_is_worse_where_the_row_says_so() -> None:
    assert outcome(metric(0.9, 0.01), metric(0.5, 0.01), AGREEMENT) == "regression"
    assert outcome(metric(0.5, 0.01), metric(0.9, 0.01), AGREEMENT) == "improvement"
    assert outcome(metric(100.0, 1.0), metric(10.0, 0.1), CRITICAL) == "regression"
    assert outcome(metric(10.0, 0.1), metric(100.0, 1.0), CRITICAL) == "improvement"


def test_the_wider_side_of_an_interval_counts() -> None:
    lopsided = metric(0.2) | {"low": 0.19, "high": 0.3}
    turned = metric(0.2) | {"low": 0.1, "high": 0.21}
    limits = {margin(m, metric(0.2), SHARE, 1).limit for m in (lopsided, turned, metric(0.2, 0.1))}
    assert max(limits) - min(limits) <= ROUNDINGS


def test_the_degrees_of_freedom_are_those_of_both() -> None:
    """However unlike the intervals are: under the hypothesis both variances are one."""
    for i in range(20):
        before, point_like = typed(metric(0.2, 0.1 * 1.3**i)), typed(metric(0.2))
        point = quantile(1, 14) * margins.standard_error(before)
        assert margins.allowance(before, point_like, 1) == pytest.approx(point, rel=ROUNDINGS)
        both = point * math.sqrt(2)
        assert margins.allowance(before, before, 1) == pytest.approx(both, rel=ROUNDINGS)


def test_a_metric_without_a_row_stops_the_gate() -> None:
    for hypothesis, name in (("H1", "brand_new"), ("H9", "log_ratio_nsr")):
        with pytest.raises(ValueError, match=rf"{hypothesis} {name} has no direction: say"):
            direction(hypothesis, name)


def test_every_row_is_of_a_known_scale_or_says_why_it_has_none() -> None:
    for rows in DIRECTIONS.values():
        for name, how in rows.items():
            assert how.scale in ("ratio", "difference", "magnitude", "step", "exact", ""), name
            assert bool(how.scale) != bool(how.reason), name
            assert how.worse in (1, -1), name
            assert (how.worse > 0) == (how.best == 0), f"{name}: the best lies where it is worse"


def test_what_a_metric_is_says_how_it_is_compared() -> None:
    """By what it measures: shares add, errors multiply, biases have a sign."""
    special = {
        "step": {"reward_resolution_median", "value_quant_step_median"},
        "magnitude": {"kl_k3_rel_error", "drift_nats_per_1000_tokens"},
        "exact": {
            *("k3_negative_frac", "log_ratio_nonfinite_frac"),
            *("reward_nonfinite_frac", "value_nonfinite_frac", "rollout_nonfinite_frac"),
        },
        "difference": {
            *("reward_kendall_tau", "sequence_ratio_ess", "value_stagnation_rate"),
            "batch_variance",  # 0 on a CPU, where a factor says nothing
        },
    }
    for rows in DIRECTIONS.values():
        for name, how in rows.items():
            [want] = [scale for scale, names in special.items() if name in names] or [
                "difference" if name.endswith("_frac") else "ratio"
            ]
            assert how.scale in (want, ""), name
    less = {name for rows in DIRECTIONS.values() for name, how in rows.items() if how.worse < 0}
    moved = {"weights_moved_frac", "masters_moved_frac"}
    assert less == {"reward_kendall_tau", "value_critical_magnitude"} | moved


def test_only_what_the_signal_divides_follows_the_kl() -> None:
    """Noise over signal as 1 / sqrt(KL), noise over the KL itself as 1 / KL."""
    found = {
        name: how.kl_exponent
        for rows in DIRECTIONS.values()
        for name, how in rows.items()
        if how.kl_exponent
    }
    assert found == {
        "log_ratio_near_zero_frac": -0.5,
        "log_ratio_nsr": -0.5,
        "batch_variance": -0.5,
        "kl_k3_rel_error": -1.0,
    }
