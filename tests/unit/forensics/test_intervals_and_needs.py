"""Intervals of shares stay within 0 and 1; an undecided cell says what would decide it."""

import numpy as np

from precision_lib.forensics.causal import Paired, why_inconclusive, within_a_share
from precision_lib.forensics.evidence import Evidence
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.forensics.hypothesis import BATCH_VARIANCE
from precision_lib.forensics.statistics import Metric, resample
from precision_lib.forensics.verdicts import INCONCLUSIVE, Cell
from precision_lib.metrics.measure import Measure


def test_the_interval_of_a_share_does_not_leave_0_to_1() -> None:
    sums = {"tied": np.array([0.0] * 7 + [1.0]), "tokens": np.full(8, 10.0)}
    function = lambda t: t["tied"] / t["tokens"]  # noqa: E731
    resampling = resample(np.arange(8), 0)
    metrics = dict.fromkeys(("reward_tie_frac", "free"), Measure(function, "share"))
    found = Paired(metrics, resampling).estimates(sums)
    assert found["free"].low < 0
    assert found["reward_tie_frac"].low == 0
    assert found["reward_tie_frac"].high == found["free"].high
    assert within_a_share(Metric(0.99, 0.9, 1.1, 8, "share")).high == 1


def undecided(low: float, high: float) -> Cell:
    decision = DECISIONS["H4"]
    damage = Metric((low + high) / 2, low, high, 8, "nats", clusters=8)
    floor = Metric(0.0, 0.0, 0.0, 8, "nats")
    metrics = {decision.metric: damage, BATCH_VARIANCE: floor}
    return Cell("H4", "bf16_pure", INCONCLUSIVE, metrics, Evidence(golden_floor=floor))


def test_an_undecided_cell_says_how_many_sequences_would_decide_it() -> None:
    decision, limit = DECISIONS["H4"], DECISIONS["H4"].limit
    said = why_inconclusive(undecided(limit - 0.1, limit + 0.31), decision)
    assert "8 sequences or prompts cannot decide it; about 31 would" in said  # 8 (0.205 / 0.105)^2
    assert "The estimate lies on the limit" in why_inconclusive(
        undecided(limit - 0.25, limit + 0.25), decision
    )
