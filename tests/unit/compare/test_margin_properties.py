"""What holds of every margin: properties of drawn metrics, and how often clean runs turn red.

The hazard. A gate whose false alarms were never counted is loosened by hand at the first of them.
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lib.compare import margins
from precision_lib.compare.directions import DIRECTIONS, Direction
from precision_lib.compare.margins import is_beyond
from precision_lib.forensics import statistics
from precision_lib.forensics.t_quantile import student_quantile
from precision_lib.metrics.measure import Array, Totals
from precision_lib.record.codec import encode
from tests.unit.small_blocks import margin, metric, outcome

RATIO, SHARE, SIZE, STEP = (
    Direction(scale) for scale in ("ratio", "difference", "magnitude", "step")
)
AGREEMENT = Direction("difference", worse=-1, best=1.0)
CRITICAL = DIRECTIONS["H3"]["value_critical_magnitude"]
positive = st.floats(1e-6, 1e6)
small = st.floats(0.0, 0.9)
scales = st.sampled_from([RATIO, SHARE, AGREEMENT, CRITICAL, STEP, SIZE])
some = st.sampled_from([1, 30, 300])


@given(value=positive, half=small, how=scales, many=some)
def test_the_same_metric_twice_is_no_change(
    value: float, half: float, how: Direction, many: int
) -> None:
    m = metric(value, half * value)
    assert outcome(m, m, how, many) == "same"


@given(before=positive, after=positive, half=small, how=scales, many=some)
def test_swapped_a_regression_is_an_improvement(
    before: float, after: float, half: float, how: Direction, many: int
) -> None:
    """Where both intervals are as wide on the metric's scale; else the cap decides."""
    as_factor = how.scale == "ratio"
    a = metric(before, half * before)
    b = metric(after, half * (after if as_factor else before))
    there, back = margin(a, b, how, many), margin(b, a, how, many)
    edge = (there.after - there.limit) / (there.limit + there.after)
    if abs(edge) < 1e-12:
        return  # within a few roundings of the limit either answer is right
    swapped = {"regression": "improvement", "improvement": "regression", "same": "same"}
    edge_back = (back.after - back.limit) / (back.limit + back.after)
    if abs(edge_back) >= 1e-12:
        assert outcome(b, a, how, many) == swapped[outcome(a, b, how, many)]


@given(
    before=positive,
    halves=st.tuples(small, small),
    damage=st.tuples(st.floats(1.0, 1e3), st.floats(1.0, 1e3)),
    how=scales,
    many=some,
)
def test_more_damage_never_turns_red_to_green(
    before: float,
    halves: tuple[float, float],
    damage: tuple[float, float],
    how: Direction,
    many: int,
) -> None:
    """Damage as a factor on a value whose interval keeps its relative or its absolute width."""
    old, half = metric(before, halves[0] * before), halves[1] * before
    found = []
    for factor in sorted(damage):
        value = before * factor ** float(how.worse)
        kept = half * value / before if how.scale in ("ratio", "step") else half
        found.append(outcome(old, metric(value, kept), how, many))
    assert found[0] != "regression" or found[1] == "regression", found


@given(
    before=positive,
    after=positive,
    halves=st.tuples(small, small),
    wider=st.floats(1.0, 1.1),
    how=scales,
    many=some,
)
def test_wider_intervals_never_add_a_regression(
    before: float,
    after: float,
    halves: tuple[float, float],
    wider: float,
    how: Direction,
    many: int,
) -> None:
    """Both wider by one factor on the metric's scale, so that the degrees of freedom stay."""
    log = how.scale in ("ratio", "step")
    pairs = [
        [_spread(v, half * by, log=log) for v, half in zip((before, after), halves, strict=True)]
        for by in (1.0, wider)
    ]
    narrow, wide = (margin(old, new, how, many) for old, new in pairs)
    slack = 1e-9 * abs(narrow.limit - narrow.before)
    assert (wide.limit - narrow.limit) * how.worse >= -slack


def _spread(value: float, half: float, *, log: bool) -> dict[str, Any]:
    if not log:
        return metric(value, half * value)
    return metric(value) | {"low": value * math.exp(-half), "high": value * math.exp(half)}


def mean(totals: Totals) -> Array:
    return totals["x"] / totals["n"]


def root_mean_square(totals: Totals) -> Array:
    return np.sqrt(totals["square"] / totals["n"])


#: Of clean pairs of runs, the share that may be called a regression: one that can be counted.
SHARE_OF_ALARMS = 0.005


def _alarms(clusters: int, how: Direction, trials: int, *, normal: bool = False) -> int:
    """Clean pairs of measurements, one distribution for both, in which one is a regression."""
    generator = np.random.default_rng(clusters)
    drawn = statistics.resample(np.arange(clusters), seed=1, resamples=1000)
    function = mean if how.scale == "difference" else root_mean_square
    alarms = 0
    for _ in range(trials):
        pair = []
        for x in generator.normal(1.0, 0.3, (2, clusters)):
            sums = {"x": x, "square": x**2, "n": np.ones(clusters)}
            found = statistics.estimate(sums, function, drawn, n=clusters, unit="")
            pair.append(encode(found))
        if normal:
            pair = [_as_if_normal(m) for m in pair]
        before, after = pair
        m = margin(before, after, how, comparisons=1)
        alarms += is_beyond(m.after, m.limit, how.worse)
    return alarms


def _as_if_normal(found: dict[str, Any]) -> dict[str, Any]:
    """The same standard error, with no word about how few clusters it comes from."""
    arm = max(found["high"] - found["value"], found["value"] - found["low"])
    return metric(found["value"], arm / student_quantile(found["clusters"] - 1) * 1.95996) | {
        "clusters": None
    }


def most(trials: int) -> float:
    """Alarms that a gate of the nominal share gives, and 3 binomial standard errors more."""
    return trials * SHARE_OF_ALARMS + 3 * math.sqrt(trials * SHARE_OF_ALARMS)


@pytest.mark.parametrize("clusters", [8, 32])
@pytest.mark.parametrize("how", [SHARE, RATIO], ids=["difference", "ratio"])
def test_clean_runs_are_called_a_regression_as_seldom_as_promised(
    clusters: int, how: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(margins, "FALSE_ALARMS", SHARE_OF_ALARMS)
    alarms = _alarms(clusters, how, 4000)
    assert alarms <= most(4000), alarms


def test_normal_quantiles_would_cry_wolf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tempting mistake, beyond what the test above allows."""
    monkeypatch.setattr(margins, "FALSE_ALARMS", SHARE_OF_ALARMS)
    assert _alarms(8, SHARE, 12000, normal=True) > most(12000)


def test_a_doubled_error_is_seen() -> None:
    """An RMS error of 32 clusters that vary by 30 %, at the margin of a run of 300 metrics.

    log 2 = 0.69 lies 3.9 standard errors (0.3 sqrt(2 / 32) = 0.075) beyond a limit at 5.3.
    """
    generator = np.random.default_rng(0)
    drawn = statistics.resample(np.arange(32), seed=1, resamples=1000)
    seen = 0
    for _ in range(50):
        before, after = (
            encode(
                statistics.estimate(
                    {"square": (scale * x) ** 2, "n": np.ones(32)},
                    root_mean_square,
                    drawn,
                    n=32,
                    unit="",
                )
            )
            for scale, x in zip((1.0, 2.0), generator.normal(1.0, 0.3, (2, 32)), strict=True)
        )
        seen += outcome(before, after, RATIO, 300) == "regression"
    assert seen == 50
